"""Makes links to images, and answers the links to images on the local disk."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request, send_file
from sqlalchemy import and_, bindparam, select

from clinic import rights
from clinic.stores import THUMBNAIL, stores, thumbnail_key
from models import Image, Report, User
from server import errors, fast_reads
from server.pictures.thumbnails import is_thumbnail

access_log = logging.getLogger("hosi.access")


def image_links() -> Callable[[dict[str, Any]], None]:
    """Return a function that makes the images in the fields of a `ReportOut` into links for the caller.

    A thumbnail on the local disk has its own link, which shows the picture itself until there is a thumbnail.
    """
    kept = stores()
    local_link, cloudinary = kept.local.links(rights.caller().id), kept.cloudinary

    def link_images(report: dict[str, Any]) -> None:
        for image in report["images"]:
            stored = image["image_url"]
            if "://" in stored:  # Cloudinary signs its URLs at the upload
                image["thumbnail_url"] = cloudinary.thumbnail_url(stored) if cloudinary else stored
                continue
            image["image_url"] = image["thumbnail_url"] = local_link(stored)
            if not is_thumbnail(image["width"], image["height"], image["bytes"]):
                image["thumbnail_url"] = local_link(thumbnail_key(stored))

    return link_images


_linked = (
    select(Image.sha256, Image.image_url, User.role)
    .join(Report, Report.id == Image.report_id)
    .outerjoin(User, and_(User.id == bindparam("reader"), User.is_active, User.deleted_at.is_(None)))
    .where(Image.public_id == bindparam("public_id"), Image.deleted_at.is_(None), Report.deleted_at.is_(None))
)


def respond(key: str, link: Mapping[str, str]) -> Response:
    """Return the local image or thumbnail of a link, or 304 where the browser has it.

    A link to a thumbnail that is not there answers the picture, whose ETag is another.
    The link is good only while its reader may sign in and read reports, and while the image and its report are there.
    Raises `Forbidden` or `NotFound`.
    """
    if not re.fullmatch(rf"[0-9a-f]{{40}}(\.[a-z]+|{re.escape(THUMBNAIL)})", key):
        raise errors.NotFound("There is no such image.")
    store = stores().local
    if not store.is_good(key, *(link.get(part, "") for part in ("reader", "expires", "signature"))):
        raise errors.Forbidden("This link to an image is not valid or has expired. Ask for the report again.")
    rows = fast_reads.read(_linked, {"public_id": key.partition(".")[0], "reader": int(link["reader"])})
    paths = [store.path(key), *(store.path(image_url) for _, image_url, _ in rows if key.endswith(THUMBNAIL))]
    path = next((path for path in paths if path.is_file()), None)
    if not rows or path is None:
        raise errors.NotFound("This image is no longer here.")
    [(sha256, _, role)] = rows
    if role not in rights.CLINICIANS:
        raise errors.Forbidden("The user of this link may not read reports any more.")
    access_log.info("user %s GET image %s", link["reader"], key)
    response = send_file(path, mimetype=f"image/{path.suffix[1:]}", conditional=False, etag=False)
    response.set_etag(sha256 + "-thumbnail" * path.name.endswith(THUMBNAIL))
    del response.last_modified  # the ETag alone says whether it is the same
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # for an <img> in a page of another origin
    response.make_conditional(request)
    return response
