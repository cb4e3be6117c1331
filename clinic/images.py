"""Images: checked, sent to a store side by side, and tied to their report by the database.

Two stores: Cloudinary (`authenticated` delivery), and the local disk where there are no credentials for it.
An upload is written down before it is sent and struck out by the commit of its report, so that at whatever point the
process dies, what is in the store without a report is known and can be swept.
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
from typing import Protocol

from flask import Flask, Response, current_app, request, send_file
from sqlalchemy import delete, insert, select, update
from werkzeug.datastructures import FileStorage

from models import Image, Report, Upload
from server import errors, pictures
from server.database import db, now, refuse_open_transaction
from server.multipart import FILE_LIMIT, MOST_FILES
from server.pictures import Picture

log = logging.getLogger("hosi.media")
access_log = logging.getLogger("hosi.access")

IN_FLIGHT = 12 * 1024 * 1024  # bytes of images being sent at once by this process: the SDK reads a file whole
SENDERS = 8  # threads that send one report's images
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the SDK's pool of one connection overflows
UPLOAD_TIMEOUT = 60  # seconds
ABANDONED_AFTER = timedelta(hours=1)


class StoreError(Exception):
    """The store did not do what it was asked."""


class Store(Protocol):
    name: str

    def put(self, picture: Picture, public_id: str) -> str:
        """Keeps the picture; returns what is saved as its `image_url`. Raises `StoreError`."""

    def destroy(self, public_id: str) -> None:
        """Forgets the picture; not an error where there is none. Raises `StoreError`."""


class CloudinaryStore:
    """https://cloudinary.com/documentation/image_upload_api_reference"""

    name = "Cloudinary"

    def __init__(self, cloud_name: str, api_key: str, api_secret: str, upload_prefix: str) -> None:
        import cloudinary.exceptions  # it reads its own environment variables when imported, and may raise
        import cloudinary.uploader
        from urllib3.exceptions import HTTPError

        self._sdk = cloudinary.uploader
        # the last three: the SDK trusts that an answer is the JSON it knows
        self._failures = cloudinary.exceptions.Error, HTTPError, OSError, KeyError, TypeError, AttributeError
        self._account = {
            "cloud_name": cloud_name,
            "api_key": api_key,
            "api_secret": api_secret,
            "upload_prefix": upload_prefix,
            "timeout": UPLOAD_TIMEOUT,
            # said here, or the SDK takes them from its own environment variables
            "oauth_token": None,
            "upload_preset": None,
            "signature_version": 2,
            "signature_algorithm": "sha1",
        }

    def put(self, picture: Picture, public_id: str) -> str:
        try:
            content = ("image", picture.file.read())  # not the file's own name, which may be a patient's
            answer = self._sdk.upload(
                content, public_id=public_id, type="authenticated", overwrite=False, **self._account
            )
            url = str(answer["secure_url"])
        except self._failures as error:
            raise StoreError(str(error)) from error
        if not re.match("https?://", url):
            raise StoreError("Cloudinary's answer has no URL")
        return url

    def destroy(self, public_id: str) -> None:
        try:
            self._sdk.destroy(public_id, type="authenticated", invalidate=True, **self._account)
        except self._failures as error:
            raise StoreError(str(error)) from error


class LocalStore:
    """Files in the instance folder, given out by links that are signed for one reader and expire."""

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
        """The file's name, too, is on the disk before the report is acknowledged. Windows knows no such thing."""
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

    def _signature(self, key: str, reader: str, expires: str) -> str:
        return hmac.digest(self._secret, f"{key}|{reader}|{expires}".encode(), "sha256").hex()

    def links(self, reader_id: int) -> Callable[[str], str]:
        """What makes a file's key into the address at which this reader's browser gets the picture."""
        base = f"{self._public_url or request.host_url.rstrip('/')}/media"
        reader, expires = str(reader_id), str(int(time.time()) + self._lifetime)
        query = f"reader={reader}&expires={expires}&signature="
        return lambda key: f"{base}/{key}?{query}{self._signature(key, reader, expires)}"

    def open_link(self, key: str, reader: str, expires: str, signature: str) -> Path:
        """The file that a link stands for. Raises `Forbidden`, and `NotFound` where the image is no more."""
        right = hmac.compare_digest(self._signature(key, reader, expires).encode(), signature.encode())
        if not right or int(expires) < time.time():
            raise errors.Forbidden("This link to an image is not valid or has expired. Ask for the report again.")
        path = self.path(key)
        if not path.is_file():
            raise errors.NotFound("This image is no longer here.")
        return path


@dataclass(frozen=True, slots=True)
class Stores:
    """Where new images go, and where images may be: a clinic that has changed its store has some in either."""

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
    """Those of the running application."""
    kept: Stores = current_app.extensions["image_stores"]
    return kept


def links(reader_id: int) -> Callable[[str], str]:
    """What makes an `image_url` into the address at which this reader's browser gets the picture."""
    local = stores().local.links(reader_id)
    return lambda url: url if "://" in url else local(url)  # Cloudinary signed its own when it was uploaded


def _give_memory_back() -> None:
    """glibc keeps what a thread has freed, for each thread; images are large enough to be given back at once.

    mallopt(3): M_MMAP_THRESHOLD is -3. Measured by bench/uploads.py: 91 MB without, 15 MB with.
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


def respond(key: str, link: Mapping[str, str]) -> Response:
    """The local image that a link's key and query string stand for. Raises `Forbidden` or `NotFound`."""
    if not re.fullmatch(r"[0-9a-f]{40}\.[a-z]+", key):
        raise errors.NotFound("There is no such image.")
    path = stores().local.open_link(key, *(link.get(part, "") for part in ("reader", "expires", "signature")))
    access_log.info("user %s GET image %s", link["reader"], key)
    response = send_file(path, mimetype=f"image/{path.suffix[1:]}", conditional=False, etag=False)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # an <img> of the client's origin
    return response


class _Budget:
    """Lets through what fits into `size` bytes at once; what is larger than all of it goes alone."""

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
    """The files as pictures fit to be kept. All are looked at before any is sent. Raises `TooLarge` or `Invalid`."""
    if len(files) > MOST_FILES:
        raise errors.Invalid(images=f"At most {MOST_FILES} images can be sent at once; these are {len(files)}.")
    for file in files:
        if file.stream.seek(0, os.SEEK_END) > FILE_LIMIT:
            raise errors.TooLarge(f"{(file.filename or '')[:100]} is larger than {FILE_LIMIT >> 20} MB.")
    wrong: list[str] = []
    with ExitStack() as opened:
        checked: list[Picture] = []
        for file in files:
            try:
                checked.append(pictures.check(file.stream))
                opened.callback(checked[-1].close)
                if checked[-1].bytes > FILE_LIMIT:  # a TIFF may have been smaller than its PNG
                    wrong.append(f"{(file.filename or '')[:100]}: as a PNG it is larger than {FILE_LIMIT >> 20} MB.")
            except pictures.UnfitPicture as reason:
                wrong.append(f"{(file.filename or '')[:100]}: {reason}")
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
    Raises `TooLarge`, `Invalid` or `ImageStoreFailed`.
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
    """Destroys the uploads that no commit has made a report's. What fails here is left to the sweep.

    Those that a sweep has claimed are destroyed once more: they may have come into the store after it was there.
    """
    try:
        with db.engine.begin() as connection:
            # waits for the commit, should it be under way still although it failed for us
            connection.execute(update(Upload).where(Upload.public_id.in_(public_ids)).values(claimed_at=now()))
            kept = set(connection.scalars(select(Image.public_id).where(Image.public_id.in_(public_ids))))
        _destroy_claimed({one: stores().chosen.name for one in public_ids if one not in kept})
    except Exception:
        log.exception("%d uploads are left to the sweep (flask purge)", len(public_ids))


def _destroy_claimed(uploads: Mapping[str, str]) -> None:
    """By the public id the name of the store. Raises `StoreError`, having done what the other store had to do."""
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
    """Destroys images that no report has: what a crash left an hour ago, what a purge erased. Returns how many."""
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
