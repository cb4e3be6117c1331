"""Keeps images as files on the local disk."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

from clinic.stores.store import (
    PIECE,
    THUMBNAIL,
    NoPicture,
    StoredPicture,
    StoreError,
    thumbnail_key,
    write_pieces,
)
from server.logs import one_line
from server.pictures import Picture, thumbnails

log = logging.getLogger("hosi.media")


class LocalStore:
    """Files in the instance folder."""

    name = "the local disk"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def put(self, picture: Picture, public_id: str) -> str:
        key = f"{public_id}.{picture.format}"
        with self._failures():
            self._write(self.path(key), picture.file)
        if not thumbnails.is_thumbnail(picture.width, picture.height, picture.bytes):
            try:
                self.add_thumbnail(StoredPicture(key, picture.bytes, picture.sha256))
            except Exception as error:  # the picture itself is there
                log.warning("no thumbnail was made of %s: %s", key, one_line(str(error)))
        return key

    def fetch(self, picture: StoredPicture, into: IO[bytes]) -> None:
        with self._failures(), self.path(picture.image_url).open("rb") as file:
            write_pieces(iter(partial(file.read, PIECE), b""), into, picture.bytes)

    def add_thumbnail(self, picture: StoredPicture) -> None:
        path, thumbnail = self.path(picture.image_url), self.path(thumbnail_key(picture.image_url))
        if thumbnail.is_file():
            return
        with self._failures():
            with path.open("rb") as file:
                content = thumbnails.make(file, path.suffix[1:])
            self._write(thumbnail, BytesIO(content))
            if not path.is_file():  # it was destroyed meanwhile, perhaps before the thumbnail could be seen
                thumbnail.unlink(missing_ok=True)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NoPicture(f"{self.name} has no such picture") from error
        except OSError as error:
            raise StoreError(str(error)) from error

    def _write(self, path: Path, content: IO[bytes]) -> None:
        """Write the file as a whole or not at all, by a draft. `delete_drafts` deletes what a crash leaves."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sync(self.folder)
        draft = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            with draft.open("wb") as file:
                while piece := content.read(PIECE):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self._sync(path.parent)

    @staticmethod
    def _sync(folder: Path) -> None:
        """Write the folder's entries to the disk, so that a new file survives a power cut. Windows has no such call."""
        if os.name == "posix":
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def destroy(self, public_id: str) -> None:
        folder = self.path(public_id).parent
        try:
            # Look again after the picture is gone: a thumbnail may have been made of it in the same moment.
            while found := list(folder.glob(f"{public_id}.*")):
                for path in found:
                    path.unlink(missing_ok=True)
                self._sync(folder)
        except OSError as error:
            raise StoreError(str(error)) from error

    def public_ids(self) -> Iterator[str]:
        for path in self.folder.glob("*/*"):
            if path.suffix != ".part" and not path.name.endswith(THUMBNAIL):
                yield path.stem

    def thumbnail_ids(self) -> Iterator[str]:
        for path in self.folder.glob(f"*/*{THUMBNAIL}"):
            yield path.name.removesuffix(THUMBNAIL)

    def delete_drafts(self, before: float) -> None:
        """Delete the drafts that nobody has written to since this Unix time: a crash left them. Raises `StoreError`."""
        try:
            for draft in self.folder.glob("*/*.part"):
                with suppress(FileNotFoundError):
                    if draft.stat().st_mtime < before:
                        draft.unlink()
        except OSError as error:
            raise StoreError(str(error)) from error
