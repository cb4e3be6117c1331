"""Cleans GIF (GIF89a): keeps the images, their graphic controls, the loop and the colour profile."""

import struct

from server.pictures.icc import real_profile
from server.pictures.parts import CleanedPicture, PartReader
from server.pictures.refusals import DAMAGED, UnfitPicture, refuse_bomb

_IMAGE = b","
_EXTENSION = b"!"
_TRAILER = b";"
_GRAPHIC_CONTROL = b"\xf9"
_APPLICATION = b"\xff"
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")  # two names of the loop extension
_ICC = b"ICCRGBG1012"


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
        self._seen: set[bytes] = set()  # application extensions
        self._right, self._bottom = self._width, self._height  # decoders enlarge the canvas for a larger frame

    def clean(self) -> CleanedPicture:
        start = self._reader.position
        while (kind := self._reader.read(1)) != _TRAILER:
            if kind == _IMAGE:
                self._read_image_header()
                self._read_blocks()
                self._cleaned += self._reader.since(start)
            elif kind == _EXTENSION:
                self._cleaned += self._clean_extension()
            else:
                raise UnfitPicture(DAMAGED)
            start = self._reader.position
        refuse_bomb(self._right, self._bottom, self._frames)
        self._cleaned += _TRAILER
        cost = self._right * self._bottom * self._frames
        return CleanedPicture(self._cleaned, self._width, self._height, self._frames, cost)

    def _read_image_header(self) -> None:
        """Read up to the compressed pixels. A first frame that is larger than the screen enlarges the picture."""
        x, y, width, height, flags = struct.unpack("<HHHHB", self._reader.read(9))
        self._reader.read(_colour_table_size(flags))
        self._reader.read(1)  # the size of the first LZW code
        self._frames += 1
        self._right, self._bottom = max(self._right, x + width), max(self._bottom, y + height)
        if self._frames == 1:
            self._width, self._height = self._right, self._bottom

    def _read_blocks(self) -> list[bytes]:
        blocks = []
        while size := self._reader.read_number("B"):
            blocks.append(self._reader.read(size))
        return blocks

    def _clean_extension(self) -> bytes:
        """Return the extension without surplus blocks; b"" for comments, plain text and unknown applications."""
        label = self._reader.read(1)
        blocks = self._read_blocks()
        if label == _GRAPHIC_CONTROL:
            if [len(block) for block in blocks] != [4]:
                raise UnfitPicture(DAMAGED)
            return _extension(label, blocks)
        name, content = blocks[:1], blocks[1:]
        if label != _APPLICATION or not name or name[0] in self._seen:
            return b""
        if name[0] in _LOOPS:  # block: 1, then the number of rounds as two bytes
            content = [block for block in content if len(block) == 3 and block[0] == 1][:1]
        elif name[0] == _ICC:
            profile = real_profile(b"".join(content))
            content = [profile[start : start + 255] for start in range(0, len(profile), 255)]
        else:
            return b""
        self._seen.add(name[0])
        return _extension(label, name + content) if content else b""


def _extension(label: bytes, blocks: list[bytes]) -> bytes:
    return _EXTENSION + label + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"


def _colour_table_size(flags: int) -> int:
    """Return the bytes of the colour table that the flags of a screen or an image announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0
