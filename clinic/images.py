"""Sends images to a store, and destroys images that no report has.

An upload's row is committed before the image is sent and deleted by the commit of its report. Wherever the process
dies, a row names each image that no report has.
"""

import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, insert, select, update
from werkzeug.datastructures import FileStorage

from clinic.stores import Store, StoreError, stores
from models import Image, Report, Upload
from server import errors, gate, metrics, pictures
from server.database import db, refuse_open_transaction
from server.multipart import FILE_LIMIT, of_file
from server.pictures import Picture
from server.times import now

log = logging.getLogger("hosi.media")

_images = metrics.counter(
    "hosi_images", "Images that were sent to their store, and that failed.", "outcome", ("sent", "failed")
)

IN_FLIGHT = 12 * 1024 * 1024  # bytes that this process sends at once: the SDK reads a file whole
SENDERS = 8  # threads that send one report's images
ABANDONED_AFTER = timedelta(hours=1)


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
            name = of_file(file.filename)
            try:
                checked.append(pictures.check(file.stream))
                opened.callback(checked[-1].close)
                if checked[-1].bytes > FILE_LIMIT:  # the PNG of a TIFF may be larger than the TIFF
                    wrong.append(f"{name}, as a PNG, is larger than {FILE_LIMIT >> 20} MB.")
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
    with gate.outside(), ThreadPoolExecutor(min(SENDERS, len(uploads)), thread_name_prefix="upload") as senders:
        sent = {one: senders.submit(_send, store, picture, one) for one, picture in uploads.items()}
        wait(sent.values(), return_when=FIRST_EXCEPTION)
        for future in sent.values():
            future.cancel()  # only what has not begun
    failures = [error for one in sent.values() if not one.cancelled() and (error := one.exception())]
    _images.labels("failed").inc(len(failures))
    _images.labels("sent").inc(sum(one.done() and not one.cancelled() for one in sent.values()) - len(failures))
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
            strike_out(list(self.pictures))
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


def strike_out(public_ids: list[str]) -> None:
    """Delete the rows of these uploads. Raises `ImageStoreFailed` after a sweep, which claims what takes over an hour.

    Commits nothing: the same transaction makes the images.
    """
    if not public_ids:
        return
    struck = db.session.execute(
        delete(Upload).where(Upload.public_id.in_(public_ids), Upload.claimed_at.is_(None)).returning(Upload.public_id)
    ).all()
    if len(struck) != len(public_ids):
        raise errors.ImageStoreFailed("The images took too long to send. Nothing was saved; please try again.")


def announce(public_ids: Iterable[str], store: str) -> None:
    """Commit a row for each upload that is about to be sent to this store."""
    with db.engine.begin() as connection:
        connection.execute(insert(Upload), [{"public_id": one, "store": store} for one in public_ids])


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
            announce(sending, stores().chosen.name)
        yield Uploads(sending, _send_all(sending) if sending else {})
    except BaseException:
        db.session.rollback()
        if sending:
            take_back(list(sending), stores().chosen.name)
        raise
    finally:
        for picture in sending.values():
            picture.close()


def take_back(public_ids: list[str], store: str) -> None:
    """Destroy the uploads in this store that no report has. The sweep destroys what fails here.

    Uploads that a sweep has claimed are destroyed again: they may have reached the store after the sweep.
    """
    try:
        with db.engine.begin() as connection:
            # waits for a commit that is still under way, although it failed for us
            connection.execute(update(Upload).where(Upload.public_id.in_(public_ids)).values(claimed_at=now()))
            kept = set(connection.scalars(select(Image.public_id).where(Image.public_id.in_(public_ids))))
        destroy_claimed({one: store for one in public_ids if one not in kept})
    except Exception:
        log.exception("%d uploads are left to the sweep (flask purge)", len(public_ids))


def destroy_claimed(uploads: Mapping[str, str]) -> None:
    """Destroy uploads; `uploads` maps public_id to store name. Raises `StoreError` after it tried every store."""
    failed: dict[str, StoreError] = {}
    for public_id, store in uploads.items():
        if store in failed:
            continue
        try:
            with gate.outside():
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
    destroy_claimed(claimed)
    stores().local.delete_drafts((now() - ABANDONED_AFTER).timestamp())
    return len(claimed)
