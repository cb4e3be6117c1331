"""Makes the thumbnails that images on the local disk and S3 lack: `flask images thumbnails`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import func, select

from clinic.stores import stores
from clinic.stores.store import NoPicture, StoredPicture, StoreError
from models import Image
from server.database import reader
from server.pictures import UnfitPicture
from server.pictures.thumbnails import is_thumbnail

BATCH = 500  # rows that are read at once

_NOT_ON_CLOUDINARY = ~Image.is_on("Cloudinary")


def make_missing(begin: Callable[[int], None], progress: Callable[[int], None]) -> Iterator[str]:
    """Make the missing thumbnails one after another, and yield a sentence for each picture that cannot be read.

    Calls `begin` with the number of images that are not on Cloudinary, then `progress(1)` for each. Archived images are
    among them, since they may be restored. Raises `StoreError` if a store fails.
    """
    kept = {store.name: store for store in stores().with_thumbnails()}
    with reader() as connection:
        begin(connection.scalar(select(func.count()).where(_NOT_ON_CLOUDINARY)) or 0)
    for image in _images():
        name, store = f"image {image.id} of report {image.report_id}", Image.store_of(image.image_url)
        if store not in kept:
            raise StoreError(f"there are images on {store}, whose credentials are not set")
        try:
            if not is_thumbnail(image.width, image.height, image.bytes):
                kept[store].add_thumbnail(StoredPicture(image.image_url, image.bytes, image.sha256))
        except UnfitPicture as reason:
            yield f"{name} has no thumbnail: {reason}"
        except NoPicture as reason:
            if _is_there(image.public_id):
                yield (
                    f"{name}: {reason}: {image.public_id}"
                    if not reason.is_missing
                    else (f"{name} has no picture on {store}: {image.public_id}")
                )
        progress(1)


def _images() -> Iterator[Any]:
    last_id = 0
    while rows := _batch_after(last_id):
        yield from rows
        last_id = rows[-1].id


def _batch_after(last_id: int) -> Sequence[Any]:
    columns = (Image.id, Image.report_id, Image.public_id, Image.image_url, Image.width, Image.height, Image.bytes)
    with reader() as connection:
        return connection.execute(
            select(*columns, Image.sha256).where(_NOT_ON_CLOUDINARY, Image.id > last_id).order_by(Image.id).limit(BATCH)
        ).all()


def _is_there(public_id: str) -> bool:
    """Return whether the image is still in the database and that store: it may be erased or moved meanwhile."""
    with reader() as connection:
        return connection.scalar(select(Image.id).where(Image.public_id == public_id)) is not None
