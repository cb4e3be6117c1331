"""Makes the thumbnails that images on the local disk lack: `flask images thumbnails`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import func, select

from clinic.stores import StoreError, stores
from models import Image
from server.database import reader
from server.pictures import UnfitPicture
from server.pictures.thumbnails import is_thumbnail

BATCH = 500  # rows that are read at once

_LOCAL = Image.image_url.not_like("%://%")


def make_missing(begin: Callable[[int], None], progress: Callable[[int], None]) -> Iterator[str]:
    """Make the missing thumbnails one after another, and yield a sentence for each picture that cannot be read.

    Calls `begin` with the number of images on the local disk, then `progress(1)` for each. Archived images are among
    them, since they may be restored. Raises `StoreError` if the disk cannot be written.
    """
    local = stores().local
    with reader() as connection:
        begin(connection.scalar(select(func.count()).where(_LOCAL)) or 0)
    for image in _local_images():
        name = f"image {image.id} of report {image.report_id}"
        try:
            if not is_thumbnail(image.width, image.height, image.bytes):
                local.add_thumbnail(image.image_url)
        except UnfitPicture as reason:
            yield f"{name} has no thumbnail: {reason}"
        except FileNotFoundError:
            if _is_there(image.id):
                yield f"{name} has no picture on {local.name}: {image.public_id}"
        except OSError as error:
            raise StoreError(str(error)) from error
        progress(1)


def _local_images() -> Iterator[Any]:
    last_id = 0
    while rows := _batch_after(last_id):
        yield from rows
        last_id = rows[-1].id


def _batch_after(last_id: int) -> Sequence[Any]:
    columns = (Image.id, Image.report_id, Image.public_id, Image.image_url, Image.width, Image.height, Image.bytes)
    with reader() as connection:
        return connection.execute(
            select(*columns).where(_LOCAL, Image.id > last_id).order_by(Image.id).limit(BATCH)
        ).all()


def _is_there(image_id: int) -> bool:
    """Return whether the image is still in the database: a purge may have erased it meanwhile."""
    with reader() as connection:
        return connection.scalar(select(Image.id).where(Image.id == image_id)) is not None
