"""Makes links to images, and answers the links to images on the local disk."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request, send_file
from sqlalchemy import and_, bindparam, select

from clinic import rights
from clinic.stores import stores
from models import Image, Report, User
from server import errors, fast_reads

access_log = logging.getLogger("hosi.access")


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
