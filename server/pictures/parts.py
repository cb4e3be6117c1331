"""Reads picture files, which consist of segments, chunks or blocks, and holds the result of cleaning them."""

import struct
from typing import NamedTuple

from server.pictures.refusals import DAMAGED, UnfitPicture

_MAX_PARTS = 1_000_000  # a GIF of 20 MB has about 160,000 parts


class CleanedPicture(NamedTuple):
    """A file without metadata. Width and height are in pixels, upright."""

    content: bytearray
    width: int
    height: int
    frames: int
    cost: float  # of decoding; unit: a pixel of a PNG


class PartReader:
    """Reads a file part by part. Raises UnfitPicture for a file that ends early or has too many parts."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.position = 0
        self._parts = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        start, self.position = self.position, self.position + size
        self._parts += 1
        if not start <= self.position <= len(self.source) or self._parts > _MAX_PARTS:
            raise UnfitPicture(DAMAGED)
        return self.source[start : self.position]

    def read_number(self, layout: str) -> int:
        """Return the next number. `layout` is a format of the struct module."""
        (number,) = struct.unpack(layout, self.read(struct.calcsize(layout)))
        return int(number)

    def since(self, start: int) -> memoryview:
        """Return the bytes from `start` to the current position."""
        return memoryview(self.source)[start : self.position]
