"""Says what a store of images does, and copies pictures out of one."""

import hashlib
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple, Protocol

from server.logs import one_line
from server.pictures import Picture

UPLOAD_TIMEOUT = 60  # seconds, for a whole call
FETCH_TIMEOUT = 20  # seconds; a thread that answers a reader waits no longer
DESTROY_TIMEOUT = 20  # seconds; the sweep destroys what fails
CONNECT_TIMEOUT = 10  # seconds, for each address of the store
LONGEST_FAILURE = 500  # characters of what a store says about a failure
PIECE = 1 << 16  # bytes that are copied at once
IN_MEMORY = 1 << 20  # bytes of a copy; a larger copy lies in a temporary file
THUMBNAIL = ".thumb.webp"  # behind the public_id of the picture


class StoreError(Exception):
    """The store failed, or cannot be reached."""


class NoPicture(StoreError):
    """The store has no such picture, or has other bytes under its name (`is_missing` is False)."""

    def __init__(self, text: str, is_missing: bool = True) -> None:
        super().__init__(text)
        self.is_missing = is_missing


class PictureRefused(StoreError):
    """The store does not take this picture, for example because it is too large for the account."""


class StoredPicture(NamedTuple):
    """What the database knows about a picture in a store."""

    image_url: str
    bytes: int
    sha256: str


class Store(Protocol):
    name: str

    def put(self, picture: Picture, public_id: str) -> str:
        """Store the picture and return its `image_url`. Raises `StoreError`."""

    def fetch(self, picture: StoredPicture, into: IO[bytes]) -> None:
        """Write the bytes of the picture into the file, and at most one byte more than it has.

        Checks nothing: see `copy_of`. Raises `NoPicture` or `StoreError`.
        """

    def destroy(self, public_id: str) -> None:
        """Delete the picture and its thumbnail, if there is one. Raises `StoreError`."""

    def public_ids(self) -> Iterator[str]:
        """Yield the public_id of every picture in the store. Raises `StoreError`."""


class ThumbnailStore(Store, Protocol):
    """A store that keeps a thumbnail beside each picture."""

    def add_thumbnail(self, picture: StoredPicture) -> None:
        """Make the thumbnail of the picture, unless there is one.

        Raises UnfitPicture for a damaged picture, `NoPicture` or `StoreError`.
        """

    def thumbnail_ids(self) -> Iterator[str]:
        """Yield the public_id of every thumbnail. Raises `StoreError`."""


def failure(error: Exception) -> StoreError:
    """Return the error of a client, which may repeat a whole answer, as one line for the log and the terminal."""
    return StoreError(one_line(str(error)[:LONGEST_FAILURE]) or type(error).__name__)


def public_id_of(key: str) -> str:
    """Return the public_id of a picture or thumbnail with this key."""
    return key.partition(".")[0]


def thumbnail_key(key: str) -> str:
    """Return the key of the thumbnail that belongs to the picture with this key."""
    return public_id_of(key) + THUMBNAIL


def write_pieces(pieces: Iterator[bytes], into: IO[bytes], limit: int) -> None:
    """Write the pieces into the file, and stop after one byte more than `limit`: such a copy is wrong anyway."""
    left = limit + 1
    for piece in pieces:
        into.write(piece[:left])
        left -= len(piece)
        if left <= 0:
            return


def copy_of(store: Store, picture: StoredPicture) -> IO[bytes]:
    """Return the picture in a temporary file, at its begin. Close it after use.

    The whole picture is read and its sha256 compared before anybody sees a byte of it: a store that gives another
    picture could give another patient's. Raises `NoPicture` or `StoreError`.
    """
    file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # the caller closes it
    try:
        store.fetch(picture, file)
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != picture.sha256:
            raise NoPicture(f"{store.name} gives other bytes than were stored", is_missing=False)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
