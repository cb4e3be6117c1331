"""Has the stores of images, Cloudinary and the local disk, and says which of them the application uses.

Cloudinary gets images with delivery type `authenticated`. The local disk has them where Cloudinary has no credentials.
"""

import ctypes
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from flask import Flask, current_app, request

from server.deadline import deadline, interruptible
from server.logs import one_line
from server.pictures import Picture, thumbnails

log = logging.getLogger("hosi.media")

logging.getLogger("urllib3.connectionpool").setLevel(
    logging.ERROR
)  # the SDK's pool has one connection, and urllib3 warns of each further one
LONGEST_URL = 2_000  # characters of an image's URL; browsers and proxies take no longer ones
LONGEST_FAILURE = 500  # characters of what Cloudinary says about a failure
UPLOAD_TIMEOUT = 60  # seconds
DESTROY_TIMEOUT = 20  # seconds; the sweep destroys what fails
CONNECT_TIMEOUT = 10  # seconds, for each address of the store
THUMBNAIL = ".thumb.webp"  # on the local disk, behind the public_id of the picture


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


_AUTHENTICATED = "/image/authenticated/"
_CLOUDINARY_URL = re.compile(  # as an upload answers it; an account with a CDN of its own has its cloud in the host
    r"(?P<host>https?://(?:(?P<private_cloud>[\w-]+)-res\.)?[^/]+(?:/(?P<cloud>[^/]+))?)"
    + _AUTHENTICATED
    + r"(?:s--[\w-]+--/)?(?:v(?P<version>\d+)/)?(?P<public_id>[^/]+)\.(?P<format>\w+)"
)


class CloudinaryStore:
    """https://cloudinary.com/documentation/image_upload_api_reference"""

    name = "Cloudinary"

    def __init__(self, cloud_name: str, api_key: str, api_secret: str, upload_prefix: str) -> None:
        import cloudinary.exceptions  # it reads its own environment variables when imported, and may raise
        import cloudinary.uploader
        import cloudinary.utils
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
        self._sign_url = partial(  # all is given, as above
            cloudinary.utils.cloudinary_url,
            cloud_name=cloud_name,
            api_secret=api_secret,
            type="authenticated",
            sign_url=True,
            signature_algorithm="sha1",
            long_url_signature=False,
            auth_token=False,
            secure=True,
            shorten=False,
            use_root_path=False,
            responsive_width=False,
        )
        # the SDK takes 53 µs for a URL; a page of 100 reports with 3 images each would take 16 ms longer
        self.thumbnail_url = lru_cache(10_000)(self._thumbnail_url)

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

    def _thumbnail_url(self, image_url: str) -> str:
        """Return the signed URL at which Cloudinary makes the thumbnail of an image. It turns the picture upright.

        The URL of an image in another account, whose secret we do not have, is returned as it is.
        """
        parts = _CLOUDINARY_URL.fullmatch(image_url)
        if parts is None or self._account["cloud_name"] not in (parts["cloud"], parts["private_cloud"]):
            return image_url
        size = {"crop": "limit", "width": thumbnails.SIDE, "height": thumbnails.SIDE}
        signed, _ = self._sign_url(parts["public_id"], version=parts["version"], format=parts["format"], **size)
        path: str = signed.partition(_AUTHENTICATED)[2]
        return parts["host"] + _AUTHENTICATED + path

    @staticmethod
    def _failure(error: Exception) -> StoreError:
        """Return the error of the SDK, which may repeat the whole answer, as one line for the log and the terminal."""
        return StoreError(one_line(str(error)[:LONGEST_FAILURE]))


def thumbnail_key(key: str) -> str:
    """Return the key of the thumbnail on the local disk that belongs to the picture with this key."""
    return key.partition(".")[0] + THUMBNAIL


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
        try:
            self._write(self.path(key), picture.file)
        except OSError as error:
            raise StoreError(str(error)) from error
        if not thumbnails.is_thumbnail(picture.width, picture.height, picture.bytes):
            try:
                self.add_thumbnail(key)
            except Exception as error:  # the picture itself is there
                log.warning("no thumbnail was made of %s: %s", key, one_line(str(error)))
        return key

    def add_thumbnail(self, key: str) -> None:
        """Make the thumbnail of the picture with this key, unless there is one.

        Raises UnfitPicture for a damaged picture, FileNotFoundError if there is no picture, OSError if the disk fails.
        """
        picture, thumbnail = self.path(key), self.path(thumbnail_key(key))
        if thumbnail.is_file():
            return
        with picture.open("rb") as file:
            content = thumbnails.make(file, picture.suffix[1:])
        self._write(thumbnail, BytesIO(content))
        if not picture.is_file():  # it was destroyed meanwhile, perhaps before the thumbnail could be seen
            thumbnail.unlink(missing_ok=True)

    def _write(self, path: Path, content: IO[bytes]) -> None:
        """Write the file as a whole or not at all, by a draft. `delete_drafts` deletes what a crash leaves."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sync(self.folder)
        draft = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            with draft.open("wb") as file:
                while piece := content.read(1 << 16):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self._sync(path.parent)

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
        folder = self.path(public_id).parent
        try:
            # Look again after the picture is gone: a thumbnail may have been made of it in the same moment.
            while found := list(folder.glob(f"{public_id}.*")):
                for path in found:
                    path.unlink(missing_ok=True)
                self._sync(folder)
        except OSError as error:
            raise StoreError(str(error)) from error

    def public_ids(self) -> Iterator[str]:
        for path in self.folder.glob("*/*"):
            if path.suffix != ".part" and not path.name.endswith(THUMBNAIL):
                yield path.stem

    def thumbnail_ids(self) -> Iterator[str]:
        """Yield the public_id of every thumbnail."""
        for path in self.folder.glob(f"*/*{THUMBNAIL}"):
            yield path.name.removesuffix(THUMBNAIL)

    def delete_drafts(self, before: float) -> None:
        """Delete the drafts that nobody has written to since this Unix time: a crash left them. Raises `StoreError`."""
        try:
            for draft in self.folder.glob("*/*.part"):
                with suppress(FileNotFoundError):
                    if draft.stat().st_mtime < before:
                        draft.unlink()
        except OSError as error:
            raise StoreError(str(error)) from error

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


def origins(app: Flask) -> list[str]:
    """Return the origins of the links to images: of the clinic's page, PUBLIC_URL and Cloudinary."""
    links = [app.config["PUBLIC_URL"]]
    if app.extensions["image_stores"].cloudinary:
        private = f"https://{app.config['CLOUDINARY_CLOUD_NAME']}-res.cloudinary.com"  # of an account with its own CDN
        links += ["https://res.cloudinary.com", private, app.config["CLOUDINARY_UPLOAD_PREFIX"]]
    return ["{0.scheme}://{0.netloc}".format(urlsplit(link)) for link in links if link]


def _give_memory_back() -> None:
    """Make glibc return freed blocks over 1 MB to the system at once (mallopt(3), M_MMAP_THRESHOLD is -3).

    bench/uploads.py measures 91 MB of memory growth without, 15 MB with.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 1 << 20)


def init_app(app: Flask) -> None:
    """Make the stores of the application."""
    _give_memory_back()
    setting = app.config
    account = [setting[f"CLOUDINARY_{part}"] for part in ("CLOUD_NAME", "API_KEY", "API_SECRET", "UPLOAD_PREFIX")]
    folder = setting["INSTANCE_PATH"] / "images"
    local = LocalStore(folder, setting["SECRET_KEY"], setting["IMAGE_LINK_TTL"], setting["PUBLIC_URL"])
    kept = Stores(local, CloudinaryStore(*account) if all(account) else None)
    app.extensions["image_stores"] = kept
    log.info("images are kept on %s", kept.chosen.name)
