"""Cleans PNG, still or animated: keeps the chunks for pixels and colours (W3C PNG, third edition)."""

import struct
import zlib
from collections.abc import Container

from PIL import PngImagePlugin

from server.pictures.exif import read_orientation, upright_size, write_exif
from server.pictures.icc import HEADER_SIZE, MAX_SIZE, declared_size, real_profile
from server.pictures.parts import CleanedPicture, PartReader
from server.pictures.refusals import DAMAGED, UnfitPicture, refuse_bomb

_KEPT = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD pHYs cICP mDCV cLLI acTL fcTL fdAT".split())
_REPEATED = frozenset((b"IDAT", b"fcTL", b"fdAT"))

# The sizes of chunks without pixels. Decoders ignore surplus bytes, so text could hide there.
_SIZES: dict[bytes, Container[int]] = {
    b"PLTE": range(3, 769, 3),
    b"IEND": (0,),
    b"tRNS": range(257),
    b"acTL": (8,),
    b"fcTL": (26,),
    b"gAMA": (4,),
    b"cHRM": (32,),
    b"sRGB": (1,),
    b"sBIT": range(1, 5),
    b"bKGD": (1, 2, 6),
    b"pHYs": (9,),
    b"cICP": (4,),
    b"mDCV": (24,),
    b"cLLI": (8,),
}
# Without one of these the pixels change, so a wrong size is damage. Other chunks of a wrong size are left out.
_NEEDED = frozenset((b"PLTE", b"IEND", b"tRNS", b"acTL", b"fcTL"))

# Pillow applies this limit, 1 MB by default, to profiles as well as text. No text is left when Pillow decodes.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_SIZE

_SIGNATURE_SIZE = 8
_HEADER_END = 33  # the signature and the chunk IHDR
_PALETTE = 3  # a colour type
_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # by colour type

# The passes of an interlaced PNG: first column, first row, step of columns, step of rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def clean(source: bytes) -> CleanedPicture:
    """Return the PNG without metadata."""
    return _PngCleaner(source).clean()


class _PngCleaner:
    def __init__(self, source: bytes) -> None:
        self._reader = PartReader(source)
        self._cleaned = bytearray(self._reader.read(_SIGNATURE_SIZE))
        header = source[_SIGNATURE_SIZE : _HEADER_END - 4]
        if not header.startswith(b"\0\0\0\rIHDR"):
            raise UnfitPicture(DAMAGED)
        self._width, self._height, *self._coding = struct.unpack(">8xIIBBBBB", header)
        self._exif = b""
        self._announced_frames = 0
        self._frames = 0
        self._still = 0  # 1 if the first picture is not a frame of the animation: only still viewers show it
        self._seen: set[bytes] = set()
        self._pixels = _PixelCounter(0, 0, self._coding)

    def clean(self) -> CleanedPicture:
        while b"IEND" not in self._seen:
            start = self._reader.position
            kind, payload = self._read_chunk()
            self._note(kind, payload)
            if kind in _KEPT and (kind not in self._seen or kind in _REPEATED):
                if _has_right_size(kind, payload):
                    self._cleaned += _clean_profile(payload) if kind == b"iCCP" else self._reader.since(start)
                self._seen.add(kind)
        return self._finish()

    def _read_chunk(self) -> tuple[bytes, bytes]:
        chunk = self._reader.read(4 + self._reader.read_number(">I"))
        kind = chunk[:4]
        critical = kind[:1].isupper()  # a viewer must know the chunk to show the picture
        if self._reader.read_number(">I") != zlib.crc32(chunk) or (critical and kind not in _KEPT):
            raise UnfitPicture(DAMAGED)
        return kind, chunk[4:]

    def _note(self, kind: bytes, payload: bytes) -> None:
        """Note the orientation and the frames, and count the pixel data."""
        match kind:
            case b"eXIf":
                self._exif = payload
            case b"acTL" if self._seen.isdisjoint((b"acTL", b"IDAT")):
                (self._announced_frames,) = struct.unpack_from(">I", payload)
            case b"fcTL":
                self._begin_frame(*struct.unpack_from(">4xII", payload))
            case b"IDAT":
                if kind not in self._seen:
                    self._begin_first_picture()
                self._pixels.inflate(payload)
            case b"fdAT":
                self._pixels.inflate(payload[4:])  # after the sequence number

    def _begin_frame(self, width: int, height: int) -> None:
        self._frames += 1
        if width > self._width or height > self._height or self._frames > self._announced_frames:
            raise UnfitPicture(DAMAGED)
        if b"IDAT" in self._seen:
            self._pixels.refuse_if_short()
            self._pixels = _PixelCounter(width, height, self._coding)

    def _begin_first_picture(self) -> None:
        self._still = 0 if self._frames else 1
        refuse_bomb(self._width, self._height, self._announced_frames + self._still)
        self._pixels = _PixelCounter(self._width, self._height, self._coding)
        colour_type = self._coding[1]
        if colour_type == _PALETTE and b"PLTE" not in self._seen:
            raise UnfitPicture(DAMAGED)  # Pillow would show grey

    def _finish(self) -> CleanedPicture:
        self._pixels.refuse_if_short()
        if self._frames != self._announced_frames or b"IDAT" not in self._seen:
            raise UnfitPicture(DAMAGED)
        orientation = read_orientation(self._exif)
        if exif := write_exif(orientation):
            self._cleaned[_HEADER_END:_HEADER_END] = _chunk(b"eXIf", exif)
        width, height = upright_size(self._width, self._height, orientation)
        frames = self._frames + self._still
        return CleanedPicture(self._cleaned, width, height, frames, cost=width * height * frames)


class _PixelCounter:
    """Counts the pixel data of a picture or frame as it inflates. Pillow would show missing pixels as black."""

    def __init__(self, width: int, height: int, coding: list[int]) -> None:
        depth, colour_type, _, _, interlaced = coding
        bits = depth * _CHANNELS[colour_type]
        self._missing = 0  # bytes
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
            self._missing += rows * (1 + (columns * bits + 7) // 8) if columns else 0
        self._inflater = zlib.decompressobj()

    def inflate(self, compressed: bytes) -> None:
        """Inflate the next piece of the data, and count its bytes."""
        for start in range(0, len(compressed), 1024):  # 1024 bytes inflate to 1 MB at most
            if self._missing > 0:
                self._missing -= len(self._inflater.decompress(compressed[start : start + 1024]))

    def refuse_if_short(self) -> None:
        """Raise UnfitPicture if bytes of the picture are missing."""
        if self._missing > 0:
            raise UnfitPicture(DAMAGED)


def _has_right_size(kind: bytes, payload: bytes) -> bool:
    right = kind not in _SIZES or len(payload) in _SIZES[kind]
    if not right and kind in _NEEDED:
        raise UnfitPicture(DAMAGED)
    return right


def _clean_profile(payload: bytes) -> bytes:
    """Return the chunk iCCP with a fixed name and the profile; b"" if the profile is not real.

    Inflates at most one byte more than the declared size of the profile, so a decompression bomb is harmless.
    """
    _, _, compressed = payload.partition(b"\0")
    method, compressed = compressed[:1], compressed[1:]
    inflater = zlib.decompressobj()
    try:
        header = inflater.decompress(compressed, HEADER_SIZE)
        size = declared_size(header)
        if method != b"\0" or size == 0:
            return b""
        content = header + inflater.decompress(inflater.unconsumed_tail, size - len(header) + 1)
    except zlib.error:
        return b""
    profile = real_profile(content)
    if profile != content or not inflater.eof or inflater.unused_data:
        compressed = zlib.compress(profile)
    return _chunk(b"iCCP", b"ICC Profile\0\0" + compressed) if profile else b""


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
