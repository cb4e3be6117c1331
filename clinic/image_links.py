"""Makes links to images, and answers the links to images on the local disk and on S3."""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import IO, Any, NamedTuple

from flask import Response, current_app, request, send_file
from sqlalchemy import and_, bindparam, select

from clinic import rights
from clinic.stores import S3Store, stores
from clinic.stores.store import THUMBNAIL, NoPicture, StoredPicture, StoreError, copy_of, public_id_of, thumbnail_key
from models import Image, Report, User
from server import errors, fast_reads, gate, logs
from server.pictures.thumbnails import is_thumbnail

log = logging.getLogger("hosi.media")


def image_links() -> Callable[[dict[str, Any]], None]:
    """Return a function that makes the images in the fields of a `ReportOut` into links for the caller.

    A thumbnail on the local disk or S3 has its own link, which shows the picture itself until there is a thumbnail.
    """
    link, cloudinary = _links(rights.caller().id), stores().cloudinary

    def link_images(report: dict[str, Any]) -> None:
        for image in report["images"]:
            stored = image["image_url"]
            if "://" in stored:  # Cloudinary signs its URLs at the upload
                image["thumbnail_url"] = cloudinary.thumbnail_url(stored) if cloudinary else stored
                continue
            key = Image.key_of(stored)
            image["image_url"] = image["thumbnail_url"] = link(key)
            if not is_thumbnail(image["width"], image["height"], image["bytes"]):
                image["thumbnail_url"] = link(thumbnail_key(key))

    return link_images


def _links(reader_id: int) -> Callable[[str], str]:
    """Return a function that makes the key of a picture into a link for this user.

    A user gets the same link during a window of `IMAGE_LINK_TTL`, so that a browser can revalidate what it has; the
    link is good until the next window ends.
    """
    secret, lifetime = _secret(), current_app.config["IMAGE_LINK_TTL"]
    base = f"{current_app.config['PUBLIC_URL'] or request.host_url.rstrip('/')}/media"
    reader, expires = str(reader_id), str((int(time.time()) // lifetime + 2) * lifetime)
    query = f"reader={reader}&expires={expires}&signature="
    return lambda key: f"{base}/{key}?{query}{_signature(secret, key, reader, expires)}"


def _is_good(key: str, reader: str, expires: str, signature: str) -> bool:
    """Return whether this link is ours and has not expired."""
    right = hmac.compare_digest(_signature(_secret(), key, reader, expires).encode(), signature.encode())
    return right and int(expires) >= time.time()


def _secret() -> bytes:
    return hashlib.sha256(b"links to images:" + current_app.config["SECRET_KEY"].encode()).digest()


def _signature(secret: bytes, key: str, reader: str, expires: str) -> str:
    return hmac.digest(secret, f"{key}|{reader}|{expires}".encode(), "sha256").hex()


class _Linked(NamedTuple):
    """The image of a link, and the role of the link's reader; None if the reader may not sign in."""

    image_url: str
    bytes: int
    sha256: str
    role: str | None

    @property
    def picture(self) -> StoredPicture:
        return StoredPicture(self.image_url, self.bytes, self.sha256)

    def tag(self, key: str) -> str:
        """Return the ETag of the picture or of its thumbnail."""
        return self.sha256 + "-thumbnail" * key.endswith(THUMBNAIL)


_linked = (
    select(Image.image_url, Image.bytes, Image.sha256, User.role)
    .join(Report, Report.id == Image.report_id)
    .outerjoin(User, and_(User.id == bindparam("reader"), User.is_active, User.deleted_at.is_(None)))
    .where(Image.public_id == bindparam("public_id"), Image.deleted_at.is_(None), Report.deleted_at.is_(None))
)


def respond(key: str, link: Mapping[str, str]) -> Response:
    """Return the image or thumbnail of a link, or 304 where the browser has it.

    A link to a thumbnail that is not there answers the picture, whose ETag is another.
    The link is good only while its reader may sign in and read reports, and while the image and its report are there.
    Raises `Forbidden`, `NotFound` or `ImageStoreFailed`.
    """
    if not re.fullmatch(rf"[0-9a-f]{{40}}(\.[a-z]+|{re.escape(THUMBNAIL)})", key):
        raise errors.NotFound("There is no such image.")
    if not _is_good(key, *(link.get(part, "") for part in ("reader", "expires", "signature"))):
        raise errors.Forbidden("This link to an image is not valid or has expired. Ask for the report again.")
    rows = fast_reads.read(_linked, {"public_id": public_id_of(key), "reader": int(link["reader"])})
    image = _Linked(*rows[0]) if rows else None
    if image is None or key not in (stored := Image.key_of(image.image_url), thumbnail_key(stored)):
        raise _gone()
    if image.role not in rights.CLINICIANS:
        raise errors.Forbidden("The user of this link may not read reports any more.")
    on_s3 = Image.store_of(image.image_url) == S3Store.name
    response = _from_s3(key, image) if on_s3 else _from_local_disk(key, image)
    logs.access.write(errors.request_id(), f"user {link['reader']} GET", f"image {key}")
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # for an <img> in a page of another origin
    return response


def _gone() -> errors.NotFound:
    return errors.NotFound("This image is no longer here.")


def _from_local_disk(key: str, image: _Linked) -> Response:
    paths = [stores().local.path(one) for one in (key, image.image_url)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise _gone()
    response = send_file(path, mimetype=_type_of(path.name), conditional=False, etag=False)
    del response.last_modified  # the ETag alone says whether it is the same
    return _tagged(response, image.tag(path.name))


def _from_s3(key: str, image: _Linked) -> Response:
    """Return the picture once its sha256 was compared. S3 is not asked for what the browser has."""
    unchanged = _tagged(Response(), image.tag(key))
    if unchanged.status_code == 304:
        return unchanged
    fast_reads.stop()  # S3 may be slow
    try:
        shown, content = _fetch(key, image)
    except NoPicture as error:
        log.error("%s: %s", image.image_url, error)
        raise (_gone() if error.is_missing else _failed()) from error
    except StoreError as error:
        log.error("the image store failed: %s", error)
        raise _failed() from error
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    response = send_file(content, mimetype=_type_of(shown), conditional=False, etag=False)
    response.content_length = size
    return _tagged(response, image.tag(shown))


def _failed() -> errors.ImageStoreFailed:
    return errors.ImageStoreFailed("The image store failed. Please try again.")


def _fetch(key: str, image: _Linked) -> tuple[str, IO[bytes]]:
    """Return the picture or the thumbnail that the key asks for, and its key. Raises `StoreError`."""
    store = stores().s3
    if store is None:
        raise StoreError("there are images on S3, whose credentials are not set")
    with gate.outside(), store.reading():
        if key.endswith(THUMBNAIL) and (thumbnail := store.thumbnail(public_id_of(key))):
            return key, BytesIO(thumbnail)
        return Image.key_of(image.image_url), copy_of(store, image.picture)


def _type_of(key: str) -> str:
    return f"image/{key.rpartition('.')[2]}"


def _tagged(response: Response, tag: str) -> Response:
    """Give the response its ETag, and make it a 304 if the browser has the same."""
    response.set_etag(tag)
    response.make_conditional(request)
    return response
