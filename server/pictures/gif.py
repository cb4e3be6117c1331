"""GIF: keeps images, their graphic controls, the loop and the colour profile (GIF89a)."""

import struct

from server.pictures.parts import CleanedPicture, PartReader
from server.pictures.refusals import DAMAGED, UnfitPicture, refuse_bomb

_IMAGE = b","
_EXTENSION = b"!"
_TRAILER = b";"
_GRAPHIC_CONTROL = b"\xf9"
_APPLICATION = b"\xff"
_KEPT_APPLICATIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")  # the loop, under two names; the ICC profile


def clean(source: bytes) -> CleanedPicture:
    """Return the GIF without comments, plain text and unknown extensions."""
    return _GifCleaner(source).clean()


class _GifCleaner:
    def __init__(self, source: bytes) -> None:
        self._reader = PartReader(source)
        self._width, self._height, flags = struct.unpack("<6xHHB2x", self._reader.read(13))
        self._reader.read(_colour_table_size(flags))
        self._cleaned = bytearray(self._reader.since(0))
        self._frames = 0
        self._right, self._bottom = self._width, self._height  # decoders enlarge the canvas for a larger frame

    def clean(self) -> CleanedPicture:
        start = self._reader.position
        while (kind := self._reader.read(1)) != _TRAILER:
            if kind == _IMAGE:
                keep = True
                self._read_image_header()
            elif kind == _EXTENSION:
                keep = self._read_extension_label()
            else:
                raise UnfitPicture(DAMAGED)
            while size := self._reader.read_number("B"):
                self._reader.read(size)
            if keep:
                self._cleaned += self._reader.since(start)
            start = self._reader.position
        refuse_bomb(self._right, self._bottom, self._frames)
        self._cleaned += _TRAILER
        return CleanedPicture(self._cleaned, self._width, self._height, self._frames)

    def _read_image_header(self) -> None:
        """Read up to the compressed pixels; a GIF is as large as its screen or its first frame."""
        x, y, width, height, flags = struct.unpack("<HHHHB", self._reader.read(9))
        self._reader.read(_colour_table_size(flags))
        self._reader.read(1)  # the size of the first LZW code
        self._frames += 1
        self._right, self._bottom = max(self._right, x + width), max(self._bottom, y + height)
        if self._frames == 1:
            self._width, self._height = self._right, self._bottom

    def _read_extension_label(self) -> bool:
        """Return whether the extension is kept."""
        label = self._reader.read(1)
        name_at = self._reader.position + 1
        name = self._reader.source[name_at : name_at + 11]
        return label == _GRAPHIC_CONTROL or (label == _APPLICATION and name in _KEPT_APPLICATIONS)


def _colour_table_size(flags: int) -> int:
    """Return the bytes of the colour table that the flags of a screen or an image announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0
