"""Opens and decodes BMP, and refuses kinds that Pillow decodes slowly or wrongly. wingdi.h defines the headers."""

import io
import struct

from PIL import Image

from server.pictures.refusals import RARE_KIND, UnfitPicture, refuse_bomb

# The size of a header tells its kind.
BITMAPCOREHEADER = 12
BITMAPV5HEADER = 124

BI_RLE8, BI_RLE4 = 1, 2  # compressions
PROFILE_EMBEDDED = b"DEBM"  # of bV5CSType; "MBED", little-endian

_HEADER_AT = 14
_MAX_RLE_PIXELS = 5_000_000  # Pillow decodes run lengths in Python; this many take up to a second
_GREY_BITS = {"1": 1, "L": 8}  # by Pillow's mode


def open_picture(source: bytes) -> tuple[Image.Image, bytes]:
    """Return the picture, not decoded yet, and its colour profile, unchecked; b"" if it has no profile."""
    image = Image.open(io.BytesIO(source), formats=["bmp"])
    refuse_bomb(*image.size)
    _refuse_slow_or_wrong(image, source)
    return image, _read_profile(source)


def load(image: Image.Image, source: bytes) -> None:
    """Decode the picture."""
    image.load()


def _refuse_slow_or_wrong(image: Image.Image, source: bytes) -> None:
    """Refuse a large run-length BMP, and a grey palette that does not use all bits of a pixel: Pillow misreads it."""
    core = source[_HEADER_AT] == BITMAPCOREHEADER
    (bits,) = struct.unpack_from("<H", source, _HEADER_AT + (10 if core else 14))
    run_lengths = image.info["compression"] in (BI_RLE8, BI_RLE4)
    slow = run_lengths and image.width * image.height > _MAX_RLE_PIXELS
    if slow or bits != _GREY_BITS.get(image.mode, bits):
        raise UnfitPicture(RARE_KIND.format("BMP"))


def _read_profile(source: bytes) -> bytes:
    """Return the ICC profile of a BITMAPV5HEADER (bV5CSType, bV5ProfileData, bV5ProfileSize)."""
    (header_size,) = struct.unpack_from("<I", source, _HEADER_AT)
    if header_size != BITMAPV5HEADER or source[_HEADER_AT + 56 : _HEADER_AT + 60] != PROFILE_EMBEDDED:
        return b""
    offset, size = struct.unpack_from("<II", source, _HEADER_AT + 112)
    return source[_HEADER_AT + offset : _HEADER_AT + offset + size]
