"""Sends images to a store, gives out links to them, and destroys images that no report has.

There are two stores: Cloudinary, with delivery type `authenticated`, and the local disk where Cloudinary has no
credentials. An upload's row is committed before the image is sent and deleted by the commit of its report. Wherever the
process dies, a row names each image that no report has.
"""

import ctypes
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from flask import Flask, Response, current_app, request, send_file
from sqlalchemy import and_, bindparam, delete, insert, select, update
from werkzeug.datastructures import FileStorage

from clinic import rights
from models import Image, Report, Upload, User
from server import errors, fast_reads, pictures
from server.database import db, refuse_open_transaction
from server.deadline import deadline, interruptible
from server.logs import one_line
from server.multipart import FILE_LIMIT, LONGEST_FILENAME
from server.pictures import Picture
from server.times import now

log = logging.getLogger("hosi.media")
access_log = logging.getLogger("hosi.access")

IN_FLIGHT = 12 * 1024 * 1024  # bytes that this process sends at once: the SDK reads a file whole
SENDERS = 8  # threads that send one report's images
logging.getLogger("urllib3.connectionpool").setLevel(
    logging.ERROR
)  # the SDK's pool has one connection, and urllib3 warns of each further one
LONGEST_URL = 2_000  # characters of an image's URL; browsers and proxies take no longer ones
LONGEST_FAILURE = 500  # characters of what Cloudinary says about a failure
UPLOAD_TIMEOUT = 60  # seconds
DESTROY_TIMEOUT = 20  # seconds; the sweep destroys what fails
CONNECT_TIMEOUT = 10  # seconds, for each address of the store
ABANDONED_AFTER = timedelta(hours=1)


class StoreError(Exception):
    """The store failed, or cannot be reached."""


class Store(Protocol):
    name: str

    def put(self, picture: Picture, public_id: str) -> str:
        """Store the picture and return its `image_url`. Raises `StoreError`."""

    def destroy(self, public_id: str) -> None:
        """Delete the picture, if there is one. Raises `StoreError`."""

    def public_ids(self) -> Iterator[str]:
        """Yield the public_id of every picture in the store. Raises `StoreError`."""


class CloudinaryStore:
    """https://cloudinary.com/documentation/image_upload_api_reference"""

    name = "Cloudinary"

    def __init__(self, cloud_name: str, api_key: str, api_secret: str, upload_prefix: str) -> None:
        import cloudinary.exceptions  # it reads its own environment variables when imported, and may raise
        import cloudinary.uploader
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        self._sdk = cloudinary.uploader
        interruptible(self._sdk._http)  # a private name, without which no call can be ended
        # the last three: the SDK does not check the JSON of an answer
        self._failures = cloudinary.exceptions.Error, HTTPError, OSError, KeyError, TypeError, AttributeError
        self._account = {
            "cloud_name": cloud_name,
            "api_key": api_key,
            "api_secret": api_secret,
            "upload_prefix": upload_prefix,
            "timeout": Timeout(connect=CONNECT_TIMEOUT, read=UPLOAD_TIMEOUT),
            # given here, because the SDK else takes them from its own environment variables
            "oauth_token": None,
            "upload_preset": None,
            "signature_version": 2,
            "signature_algorithm": "sha1",
        }

    def put(self, picture: Picture, public_id: str) -> str:
        try:
            content = ("image", picture.file.read())  # no file name: it may be a patient's name
            with deadline(UPLOAD_TIMEOUT):
                answer = self._sdk.upload(
                    content, public_id=public_id, type="authenticated", overwrite=False, **self._account
                )
            url = answer["secure_url"]
        except self._failures as error:
            raise self._failure(error) from error
        if not (isinstance(url, str) and len(url) <= LONGEST_URL and re.fullmatch(r"https?://[!-~]+", url)):
            raise StoreError("Cloudinary's answer has no URL")
        return url

    def destroy(self, public_id: str) -> None:
        try:
            with deadline(DESTROY_TIMEOUT):
                self._sdk.destroy(public_id, type="authenticated", invalidate=True, **self._account)
        except self._failures as error:
            raise self._failure(error) from error

    def public_ids(self) -> Iterator[str]:
        import cloudinary.api  # the Admin API; nothing else needs it

        cursor: str | None = None
        while True:
            asked = {"type": "authenticated", "resource_type": "image", "max_results": 500, "next_cursor": cursor}
            try:
                answer = cloudinary.api.resources(**asked, **self._account)
                found = [str(picture["public_id"]) for picture in answer["resources"]]
            except self._failures as error:
                raise self._failure(error) from error
            yield from found
            cursor = answer.get("next_cursor")
            if not cursor:
                return

    @staticmethod
    def _failure(error: Exception) -> StoreError:
        """Return the error of the SDK, which may repeat the whole answer, as one line for the log and the terminal."""
        return StoreError(one_line(str(error)[:LONGEST_FAILURE]))


class LocalStore:
    """Files in the instance folder. Links to them are signed for one user and expire."""

    name = "the local disk"

    def __init__(self, folder: Path, secret: str, lifetime: int, public_url: str) -> None:
        self.folder = folder
        self._secret = hashlib.sha256(b"links to images:" + secret.encode()).digest()
        self._lifetime = lifetime
        self._public_url = public_url

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def put(self, picture: Picture, public_id: str) -> str:
        key = f"{public_id}.{picture.format}"
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sync(self.folder)
            draft = path.with_suffix(".part")
            with draft.open("wb") as file:
                while piece := picture.file.read(1 << 16):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            self._sync(path.parent)
        except OSError as error:
            raise StoreError(str(error)) from error
        return key

    @staticmethod
    def _sync(folder: Path) -> None:
        """Write the folder's entries to the disk, so that a new file survives a power cut. Windows has no such call."""
        if os.name == "posix":
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def destroy(self, public_id: str) -> None:
        try:
            for path in self.path(public_id).parent.glob(f"{public_id}.*"):
                path.unlink(missing_ok=True)
                self._sync(path.parent)
        except OSError as error:
            raise StoreError(str(error)) from error

    def public_ids(self) -> Iterator[str]:
        for path in self.folder.glob("*/*"):
            if path.suffix != ".part":  # a draft of an upload
                yield path.stem

    def _signature(self, key: str, reader: str, expires: str) -> str:
        return hmac.digest(self._secret, f"{key}|{reader}|{expires}".encode(), "sha256").hex()

    def links(self, reader_id: int) -> Callable[[str], str]:
        """Return a function that makes the key of a file into a link for this user.

        A user gets the same link during a window of `IMAGE_LINK_TTL`, so that a browser can revalidate what it has; the
        link is good until the next window ends.
        """
        base = f"{self._public_url or request.host_url.rstrip('/')}/media"
        reader, expires = str(reader_id), str((int(time.time()) // self._lifetime + 2) * self._lifetime)
        query = f"reader={reader}&expires={expires}&signature="
        return lambda key: f"{base}/{key}?{query}{self._signature(key, reader, expires)}"

    def is_good(self, key: str, reader: str, expires: str, signature: str) -> bool:
        """Return whether this link is ours and has not expired."""
        right = hmac.compare_digest(self._signature(key, reader, expires).encode(), signature.encode())
        return right and int(expires) >= time.time()


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that have images. A clinic that changed its store has images in both."""

    local: LocalStore
    cloudinary: CloudinaryStore | None

    @property
    def chosen(self) -> Store:
        return self.cloudinary or self.local

    def named(self, name: str) -> Store:
        """Raises `StoreError`."""
        found = next((one for one in (self.local, self.cloudinary) if one and one.name == name), None)
        if found is None:
            raise StoreError(f"there are images on {name}, whose credentials are not set")
        return found


def stores() -> Stores:
    """Return the stores of the current application."""
    kept: Stores = current_app.extensions["image_stores"]
    return kept


def links(reader_id: int) -> Callable[[str], str]:
    """Return a function that makes a stored `image_url` into a link for this user."""
    local = stores().local.links(reader_id)
    return lambda url: url if "://" in url else local(url)  # Cloudinary signs its URLs at the upload


def image_links() -> Callable[[dict[str, Any]], None]:
    """Return a function that makes the `image_url`s in the fields of a `ReportOut` into links for the caller."""
    link = links(rights.caller().id)

    def link_images(report: dict[str, Any]) -> None:
        for image in report["images"]:
            image["image_url"] = link(image["image_url"])

    return link_images


def _give_memory_back() -> None:
    """Make glibc return freed blocks over 1 MB to the system at once (mallopt(3), M_MMAP_THRESHOLD is -3).

    bench/uploads.py measures 91 MB of memory growth without, 15 MB with.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 1 << 20)


def init_app(app: Flask) -> None:
    _give_memory_back()
    setting = app.config
    account = [setting[f"CLOUDINARY_{part}"] for part in ("CLOUD_NAME", "API_KEY", "API_SECRET", "UPLOAD_PREFIX")]
    folder = setting["INSTANCE_PATH"] / "images"
    local = LocalStore(folder, setting["SECRET_KEY"], setting["IMAGE_LINK_TTL"], setting["PUBLIC_URL"])
    kept = Stores(local, CloudinaryStore(*account) if all(account) else None)
    app.extensions["image_stores"] = kept
    log.info("images are kept on %s", kept.chosen.name)


_linked = (
    select(Image.sha256, User.role)
    .join(Report, Report.id == Image.report_id)
    .outerjoin(User, and_(User.id == bindparam("reader"), User.is_active, User.deleted_at.is_(None)))
    .where(Image.public_id == bindparam("public_id"), Image.deleted_at.is_(None), Report.deleted_at.is_(None))
)


def respond(key: str, link: Mapping[str, str]) -> Response:
    """Return the local image of a link, or 304 where the browser has it.

    The link is good only while its reader may sign in and read reports, and while the image and its report are there.
    Raises `Forbidden` or `NotFound`.
    """
    if not re.fullmatch(r"[0-9a-f]{40}\.[a-z]+", key):
        raise errors.NotFound("There is no such image.")
    store = stores().local
    if not store.is_good(key, *(link.get(part, "") for part in ("reader", "expires", "signature"))):
        raise errors.Forbidden("This link to an image is not valid or has expired. Ask for the report again.")
    path = store.path(key)
    rows = fast_reads.read(_linked, {"public_id": path.stem, "reader": int(link["reader"])})
    if not rows or not path.is_file():
        raise errors.NotFound("This image is no longer here.")
    [(sha256, role)] = rows
    if role not in rights.REPORT_READERS:
        raise errors.Forbidden("The user of this link may not read reports any more.")
    access_log.info("user %s GET image %s", link["reader"], key)
    response = send_file(path, mimetype=f"image/{path.suffix[1:]}", conditional=False, etag=False)
    response.set_etag(sha256)
    del response.last_modified  # the ETag alone says whether it is the same
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # for an <img> in a page of another origin
    response.make_conditional(request)
    return response


class _Budget:
    """Lets threads through while their amounts fit into `size`. A larger amount goes alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._freed = size, 0, threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        with self._freed:
            self._freed.wait_for(lambda: self._taken == 0 or self._taken + amount <= self._size)
            self._taken += amount
        try:
            yield
        finally:
            with self._freed:
                self._taken -= amount
                self._freed.notify_all()


_in_flight = _Budget(IN_FLIGHT)


def _checked(files: Sequence[FileStorage]) -> list[Picture]:
    """Check all files and return them as pictures.

    Raises `Invalid` with a sentence for each bad file, or `Unavailable` on a full disk.
    """
    wrong: list[str] = []
    with ExitStack() as opened:
        checked: list[Picture] = []
        for file in files:
            name = (file.filename or "")[:LONGEST_FILENAME]
            try:
                checked.append(pictures.check(file.stream))
                opened.callback(checked[-1].close)
                if checked[-1].bytes > FILE_LIMIT:  # the PNG of a TIFF may be larger than the TIFF
                    wrong.append(f"{name}: as a PNG it is larger than {FILE_LIMIT >> 20} MB.")
            except pictures.UnfitPicture as reason:
                wrong.append(f"{name}: {reason}")
            except OSError as error:
                raise errors.no_room(error) from error
        if wrong:
            raise errors.Invalid({"images": wrong})
        opened.pop_all()
    return checked


def _send(store: Store, picture: Picture, public_id: str) -> str:
    with _in_flight.of(picture.bytes):
        picture.file.seek(0)
        return store.put(picture, public_id)


def _send_all(uploads: dict[str, Picture]) -> dict[str, str]:
    """Send the pictures side by side and return each image_url. Waits for all before it raises `ImageStoreFailed`."""
    store = stores().chosen
    with ThreadPoolExecutor(min(SENDERS, len(uploads)), thread_name_prefix="upload") as senders:
        sent = {one: senders.submit(_send, store, picture, one) for one, picture in uploads.items()}
        wait(sent.values(), return_when=FIRST_EXCEPTION)
        for future in sent.values():
            future.cancel()  # only what has not begun
    failures = [error for one in sent.values() if not one.cancelled() and (error := one.exception())]
    for failure in failures:
        log.error("the image store failed: %s", failure)
        if not isinstance(failure, StoreError):
            raise failure
    if failures:
        raise errors.ImageStoreFailed("The image store failed. Nothing was saved; please try again.")
    return {one: future.result() for one, future in sent.items()}


@dataclass(frozen=True, slots=True)
class Uploads:
    """Images that are in the store and that no report has yet."""

    pictures: Mapping[str, Picture]  # by public_id
    urls: Mapping[str, str]

    def attach_to(self, report: Report, replace: bool = False) -> None:
        """Give the images to the report, in the transaction that is open. Raises `ImageStoreFailed` after a sweep."""
        with db.session.no_autoflush:  # a change of the report and of its images is one new version
            self._strike_out()
        images = [
            Image(
                public_id=public_id,
                image_url=self.urls[public_id],
                format=picture.format,
                width=picture.width,
                height=picture.height,
                bytes=picture.bytes,
                sha256=picture.sha256,
            )
            for public_id, picture in self.pictures.items()
        ]
        report.add_images(images, replace)

    def _strike_out(self) -> None:
        """Delete the rows of the uploads. A sweep claims uploads that take over an hour."""
        if not self.pictures:
            return
        struck = db.session.execute(
            delete(Upload)
            .where(Upload.public_id.in_(list(self.pictures)), Upload.claimed_at.is_(None))
            .returning(Upload.public_id)
        ).all()
        if len(struck) != len(self.pictures):
            raise errors.ImageStoreFailed("The images took too long to send. Nothing was saved; please try again.")


@contextmanager
def uploaded(files: Sequence[FileStorage]) -> Iterator[Uploads]:
    """Check the files and send them to the store; take them back if the block fails.

    The block makes or changes the report and commits it. No transaction may be open when this begins.
    Raises `Invalid`, `ImageStoreFailed` or `Unavailable`.
    """
    refuse_open_transaction("uploaded")
    sending = {secrets.token_hex(20): picture for picture in _checked(files)}
    try:
        if sending:
            store = stores().chosen.name
            with db.engine.begin() as connection:
                connection.execute(insert(Upload), [{"public_id": one, "store": store} for one in sending])
        yield Uploads(sending, _send_all(sending) if sending else {})
    except BaseException:
        db.session.rollback()
        if sending:
            _take_back(list(sending))
        raise
    finally:
        for picture in sending.values():
            picture.close()


def _take_back(public_ids: list[str]) -> None:
    """Destroy the uploads that no report has. The sweep destroys what fails here.

    Uploads that a sweep has claimed are destroyed again: they may have reached the store after the sweep.
    """
    try:
        with db.engine.begin() as connection:
            # waits for a commit that is still under way, although it failed for us
            connection.execute(update(Upload).where(Upload.public_id.in_(public_ids)).values(claimed_at=now()))
            kept = set(connection.scalars(select(Image.public_id).where(Image.public_id.in_(public_ids))))
        _destroy_claimed({one: stores().chosen.name for one in public_ids if one not in kept})
    except Exception:
        log.exception("%d uploads are left to the sweep (flask purge)", len(public_ids))


def _destroy_claimed(uploads: Mapping[str, str]) -> None:
    """Destroy uploads; `uploads` maps public_id to store name. Raises `StoreError` after it tried every store."""
    failed: dict[str, StoreError] = {}
    for public_id, store in uploads.items():
        if store in failed:
            continue
        try:
            stores().named(store).destroy(public_id)
        except StoreError as error:
            failed[store] = error
            continue
        with db.engine.begin() as connection:
            connection.execute(delete(Upload).where(Upload.public_id == public_id))
    if failed:
        raise StoreError("; ".join(map(str, failed.values())))


def sweep() -> int:
    """Destroy images that no report has: uploads over an hour old, and images of erased reports. Returns how many."""
    with db.engine.begin() as connection:
        connection.execute(
            update(Upload)
            .where(Upload.started_at < now() - ABANDONED_AFTER, Upload.claimed_at.is_(None))
            .values(claimed_at=now())
        )
        rows = connection.execute(select(Upload.public_id, Upload.store).where(Upload.claimed_at.is_not(None)))
        claimed = {row.public_id: row.store for row in rows}
    _destroy_claimed(claimed)
    return len(claimed)
