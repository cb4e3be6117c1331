"""Opens and decodes TIFF (TIFF 6.0), and refuses a TIFF that a PNG cannot hold without loss."""

import io
import struct
from collections.abc import Iterator

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from server.pictures import jpeg
from server.pictures.refusals import DAMAGED, LOSSY_AS_PNG, RARE_KIND, SEVERAL_PAGES, UnfitPicture, refuse_bomb

# Tags: TIFF 6.0, section 8 and following.
NEW_SUBFILE_TYPE = 254
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
STRIP_OFFSETS = 273
ROWS_PER_STRIP = 278
STRIP_BYTE_COUNTS = 279
PLANAR_CONFIGURATION = 284
COLOR_MAP = 320
TILE_WIDTH = 322
TILE_LENGTH = 323
TILE_OFFSETS = 324
TILE_BYTE_COUNTS = 325
SUB_IFDS = 330
EXTRA_SAMPLES = 338
SAMPLE_FORMAT = 339
JPEG_TABLES = 347

# Values of the tags.
REDUCED_RESOLUTION = 1  # of NEW_SUBFILE_TYPE, a bit
OLD_JPEG, JPEG = 6, 7  # of COMPRESSION
BLACK_IS_ZERO = 1  # of PHOTOMETRIC
YCBCR = 6  # of PHOTOMETRIC
SEPARATE_PLANES = 2  # of PLANAR_CONFIGURATION
UNASSOCIATED_ALPHA = 2  # of EXTRA_SAMPLES
UNSIGNED = 1  # of SAMPLE_FORMAT

_BYTE_TYPES = (1, 2, 7)  # BYTE, ASCII, UNDEFINED
_MAX_VALUES = 100_000  # of a tag: Pillow makes several objects for the offset of each strip
_MAX_JPEG_PARTS = 10_000  # strips or tiles; each takes some 0.1 ms
_MAX_JPEG_TABLES = 4_096  # bytes; all tables that a JPEG can use take 1,700
_LOSSLESS_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")


def open_picture(source: bytes) -> tuple[Image.Image, bytes]:
    """Return the picture, not decoded yet, and its colour profile, unchecked; b"" if it has no profile."""
    _refuse_many_values(source)
    image = Image.open(io.BytesIO(source), formats=["tiff"])
    assert isinstance(image, TiffImageFile)  # noqa: S101
    refuse_bomb(*image.size)
    _refuse_loss(image)
    profile = image.info.get("icc_profile")
    return image, profile if isinstance(profile, bytes) else b""


def load(image: Image.Image, source: bytes) -> None:
    """Decode the picture, and turn it upright."""
    assert isinstance(image, TiffImageFile)  # noqa: S101
    _refuse_incomplete_jpeg(image, source)
    image.load()


def _refuse_many_values(source: bytes) -> None:
    """Refuse a tag with too many numbers. An entry is tag, type, count and value (TIFF 6.0, section 2)."""
    order = "<" if source.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", source, 4)
    (entries,) = struct.unpack_from(order + "H", source, start)
    for entry in range(entries):
        kind, count = struct.unpack_from(order + "HI", source, start + 4 + 12 * entry)
        if count > _MAX_VALUES and kind not in _BYTE_TYPES:
            raise UnfitPicture(DAMAGED)


def _refuse_loss(image: TiffImageFile) -> None:
    """Refuse a picture whose values Pillow would round silently, or that a PNG cannot hold."""
    tags = image.tag_v2
    camera_raw = SUB_IFDS in tags or tags.get(NEW_SUBFILE_TYPE, 0) & REDUCED_RESOLUTION
    if image.is_animated or camera_raw:
        raise UnfitPicture(SEVERAL_PAGES)
    refuse_bomb(tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0))  # libtiff allocates a whole tile
    bits, photometric = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(PHOTOMETRIC)
    compression = image.info["compression"]
    if not (
        image.mode in _LOSSLESS_MODES
        and (set(bits) <= {1, 2, 4, 8} or (bits == (16,) and photometric == BLACK_IS_ZERO))
        and set(tags.get(SAMPLE_FORMAT, (1,))) == {UNSIGNED}
        and tags.get(EXTRA_SAMPLES, ()) in ((), (UNASSOCIATED_ALPHA,))
        and (photometric != YCBCR or "jpeg" in compression)  # JPEG is decoded as in a JPEG file
        and all(colour % 256 in (0, colour // 256) for colour in tags.get(COLOR_MAP, ()))  # 8 bits, scaled to 16
    ):
        raise UnfitPicture(LOSSY_AS_PNG)
    _refuse_missing_strips(image, len(bits))


def _refuse_missing_strips(image: TiffImageFile, channels: int) -> None:
    """Refuse a picture whose strips do not cover it: Pillow would leave the rest black."""
    separate = image.tag_v2.get(PLANAR_CONFIGURATION, 1) == SEPARATE_PLANES and image.info["compression"] == "raw"
    planes = channels if separate else 1
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, *_ in image.tile if box)
    if covered < image.width * image.height * planes:
        raise UnfitPicture(DAMAGED)


def _refuse_incomplete_jpeg(image: TiffImageFile, source: bytes) -> None:
    """Refuse JPEG strips and tiles that lack data: libtiff would fill them with grey.

    Refuse old JPEG (TIFF 6.0, section 22), too: its strips are not JPEG files. It was replaced in 1995.
    """
    compression = image.tag_v2.get(COMPRESSION)
    if compression == OLD_JPEG:
        raise UnfitPicture(RARE_KIND.format("TIFF"))
    if compression == JPEG:
        for part in _jpeg_parts(image, source):
            jpeg.count_padding(part)


def _jpeg_parts(image: TiffImageFile, source: bytes) -> Iterator[bytes]:
    """Yield the strips or tiles as complete JPEG files (TIFF Technical Note 2)."""
    tags = image.tag_v2
    tiled = TILE_OFFSETS in tags
    width = tags[TILE_WIDTH] if tiled else image.width
    height = tags[TILE_LENGTH] if tiled else min(tags.get(ROWS_PER_STRIP, image.height), image.height)
    offsets = tags[TILE_OFFSETS if tiled else STRIP_OFFSETS]
    sizes = tags[TILE_BYTE_COUNTS if tiled else STRIP_BYTE_COUNTS]
    tables = tags.get(JPEG_TABLES, b"")[2:-2]  # without SOI and EOI
    if len(offsets) > _MAX_JPEG_PARTS or sum(sizes) > len(source) or len(tables) > _MAX_JPEG_TABLES:
        raise UnfitPicture(DAMAGED)
    last_height = height if tiled else image.height % height or height
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True), 1):
        part = jpeg.clean(source[offset : offset + size], image.width * image.height)
        least = last_height if number % -(-image.height // height) == 0 else height
        if part.width != width or not least <= part.height <= height:
            raise UnfitPicture(DAMAGED)
        part.content[2:2] = tables
        yield bytes(part.content)
