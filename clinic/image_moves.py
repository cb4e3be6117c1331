"""Moves images from one store to another: `flask images move`.

A move is an upload under a new public_id. The picture is copied, read back and compared. One transaction then gives the
image its new place and leaves a claimed row of `uploads` for the old picture, which is destroyed after the commit.
Wherever the process dies, the image has a whole picture, and a row of `uploads` names each picture too many.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from sqlalchemy import func, select

from clinic import images
from clinic.stores import stores
from clinic.stores.store import NoPicture, PictureRefused, Store, StoredPicture, StoreError, copy_of
from models import Image, Upload
from server import errors
from server.database import db, in_transaction, reader
from server.pictures import Picture
from server.times import now

log = logging.getLogger("hosi.media")

BATCH = 500  # rows that are read at once
GIVE_UP = 5  # failures one after another, after which a store is thought to be away


def move_all(to: str, begin: Callable[[int], None], progress: Callable[[int], None]) -> Iterator[str]:
    """Move every image to the store with this name, and yield a sentence for each image that stays where it is.

    Calls `begin` with the number of images elsewhere, then `progress(1)` for each. Archived images are among them:
    they may be restored. Raises `StoreError` if a store has no credentials or fails several times.
    """
    target = stores().named(to)
    begin(_count_elsewhere(target))
    failures = 0
    for image in _images_elsewhere(target):
        source = stores().named(Image.store_of(image.image_url))
        try:
            _move(image, source, target)
            failures = 0
        except (StoreError, errors.ImageStoreFailed) as reason:
            if _is_unchanged(image):
                yield f"image {image.id} of report {image.report_id} stays on {source.name}: {reason}"
            failures = 0 if isinstance(reason, NoPicture | PictureRefused) else failures + 1
            if failures == GIVE_UP:
                raise StoreError(str(reason)) from reason
        progress(1)


def _move(image: Any, source: Store, target: Store) -> None:
    """Move one image. Raises `StoreError` and leaves the image where it is if a store fails."""
    public_id = secrets.token_hex(20)
    with copy_of(source, StoredPicture(image.image_url, image.bytes, image.sha256)) as file:
        images.announce([public_id], target.name)
        try:
            picture = Picture(cast(Any, file), image.format, image.width, image.height, image.bytes, image.sha256)
            image_url = target.put(picture, public_id)
            copy_of(target, StoredPicture(image_url, image.bytes, image.sha256)).close()
            if not in_transaction(lambda: _change_place(image, public_id, image_url)):
                images.take_back([public_id], target.name)
                return
        except BaseException:
            images.take_back([public_id], target.name)
            raise
    try:
        images.destroy_claimed({image.public_id: source.name})
    except StoreError as error:
        log.warning("the old picture %s is left to the sweep (flask purge): %s", image.public_id, error)


def _change_place(image: Any, public_id: str, image_url: str) -> bool:
    """Give the image its new place and leave the old picture to the sweep, in the transaction that is open.

    Returns False if the image was erased or moved meanwhile. The report keeps its version: it shows the same picture.
    """
    found = db.session.scalar(
        select(Image).where(Image.id == image.id, Image.public_id == image.public_id).with_for_update()
    )
    if found is None:
        return False
    images.strike_out([public_id])
    db.session.add(Upload(public_id=found.public_id, store=found.store, claimed_at=now()))
    found.public_id, found.image_url = public_id, image_url
    return True


def _count_elsewhere(target: Store) -> int:
    with reader() as connection:
        return connection.scalar(select(func.count()).where(~Image.is_on(target.name))) or 0


def _images_elsewhere(target: Store) -> Iterator[Any]:
    last_id = 0
    while rows := _batch_after(last_id, target):
        yield from rows
        last_id = rows[-1].id


def _batch_after(last_id: int, target: Store) -> Sequence[Any]:
    with reader() as connection:
        return connection.execute(
            select(*Image.__table__.columns)
            .where(~Image.is_on(target.name), Image.id > last_id)
            .order_by(Image.id)
            .limit(BATCH)
        ).all()


def _is_unchanged(image: Any) -> bool:
    """Return whether the image is still where it was: it may be erased or moved meanwhile."""
    with reader() as connection:
        return connection.scalar(select(Image.id).where(Image.public_id == image.public_id)) is not None
