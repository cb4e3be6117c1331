"""Limits how many streams are open at once: each holds a connection of the database until its reader has read all."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from server import errors, gate

MOST = 16  # streams of a process; as many more wait
PATIENCE = 10  # seconds that a request waits for its stream

_open = BoundedSemaphore(MOST)
_waiting = BoundedSemaphore(MOST)


@contextmanager
def place() -> Iterator[None]:
    """Count a stream while the block runs. Raises `Unavailable` if none ends in time, or if many wait already."""
    if not _open.acquire(blocking=False):
        _wait()
    try:
        yield
    finally:
        _open.release()


def _wait() -> None:
    busy = errors.Unavailable("Too many whole lists are being read at the moment. Please try again, or ask for a page.")
    busy.code = errors.Code.BUSY
    if not _waiting.acquire(blocking=False):
        raise busy
    try:
        with gate.outside():
            if not _open.acquire(timeout=PATIENCE):
                raise busy
    finally:
        _waiting.release()
