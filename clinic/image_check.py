"""Compares the images in the database with the files in the stores: `flask images verify`."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select

from clinic.stores import stores
from models import Image, Upload
from server.database import reader


def verify(begin: Callable[[int], None], progress: Callable[[int], None]) -> Iterator[str]:
    """Yield a sentence for each image without a picture, and for each picture or thumbnail without an image or upload.

    Calls `begin` with the number of images, then `progress(1)` for each. Raises `StoreError` if a store does not
    answer. Reads the database before the stores and again after them: images that are filed or erased meanwhile are no
    faults.
    """
    before = _images()
    known = stores()
    kept = {store.name: set(store.public_ids()) for store in known}
    thumbnails = {store.name: set(store.thumbnail_ids()) - kept[store.name] for store in known.with_thumbnails()}
    after = _images()
    with reader() as connection:
        uploads = set(connection.scalars(select(Upload.public_id)))
    begin(len(before))
    for public_id, image in before.items():
        name = Image.store_of(image.image_url)
        if public_id in after and public_id not in kept.get(name, ()):
            why = "has no picture on" if name in kept else "cannot be looked up: set the credentials of"
            yield f"image {image.id} of report {image.report_id} {why} {name}: {public_id}"
        progress(1)
    for name, public_ids in kept.items():
        for public_id in sorted(public_ids - after.keys() - uploads):
            yield f"a picture on {name} belongs to no image: {public_id}"
    for name, public_ids in thumbnails.items():
        for public_id in sorted(public_ids - after.keys() - uploads):
            yield f"a thumbnail on {name} belongs to no image: {public_id}"


def _images() -> dict[str, Any]:
    """Return all images of the database by their public_id. Archived images are among them."""
    with reader() as connection:
        rows = connection.execute(
            select(Image.id, Image.report_id, Image.public_id, Image.image_url).order_by(Image.id)
        )
        return {row.public_id: row for row in rows}
