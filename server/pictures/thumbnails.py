"""Makes thumbnails: WebP, upright, at most 320 pixels on the longer side, of an animation the first frame.

WebP holds photos and transparent drawings alike, in a few kilobytes, and every browser since 2020 shows it.
"""

import io
from typing import IO

from PIL import Image

from server.pictures.exif import read_orientation
from server.pictures.refusals import refuse_any_failure, refuse_bomb
from server.pictures.turns import REDUCED_JPEG, turn

SIDE = 320  # pixels of the longer side, at most
SMALL = 50_000  # bytes; a larger file gets a thumbnail even if its sides are short: an animation, for example
_QUALITY = 80
_BAND = 1_000_000  # pixels that are converted at once
_LONGEST_PROFILE = 64 * 1024  # bytes of a colour profile that a thumbnail keeps; a phone's has 600
_COLOUR_SPACE = slice(16, 20)  # in the header of a profile: ICC.1:2022, table 17

_HIGH_BYTES = [value >> 8 for value in range(1 << 16)]  # of grey with 16 bits, as browsers show it
_TURNS = {  # CIPA DC-008, orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_thumbnail(width: int, height: int, size: int) -> bool:
    """Return whether a picture of `size` bytes is small enough to be its own thumbnail."""
    return max(width, height) <= SIDE and size <= SMALL


def make(file: IO[bytes], format: str) -> bytes:
    """Return the thumbnail of a cleaned picture, without metadata. Waits its turn to decode the picture.

    Takes the memory of the decoded picture, and 20 MB. Raises UnfitPicture if the picture is damaged or too large.
    """
    with refuse_any_failure(), Image.open(file, formats=[format]) as image:
        refuse_bomb(*image.size)
        reduced = format == "jpeg" and not image.info.get("progressive")
        with turn(image.width * image.height * (REDUCED_JPEG if reduced else 1)):
            image.draft(None, (2 * SIDE, 2 * SIDE))  # libjpeg decodes to a half, a quarter or an eighth
            small = _reduced(image)
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        orientation = read_orientation(image.info.get("exif", b""))
        if orientation in _TURNS:
            small = small.transpose(_TURNS[orientation])
        thumbnail = io.BytesIO()
        small.save(thumbnail, "WEBP", quality=_QUALITY, icc_profile=_profile(image))
    return thumbnail.getvalue()


def _reduced(image: Image.Image) -> Image.Image:
    """Decode the picture, and return it in RGB or RGBA with a longer side of 640 to 1,280 pixels, if it was longer.

    Converts it band by band: a second whole copy in other colours could take 200 MB.
    """
    image.load()
    factor = max(1, max(image.size) // (2 * SIDE))
    rows = factor * max(1, _BAND // (image.width * factor))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    small = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(_in_colours(band, mode).reduce(factor), (0, top // factor))
    return small


def _in_colours(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture in RGB or RGBA. Pillow itself would show every grey of 16 bits above 255 as white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(_HIGH_BYTES, "L")
    return image.convert(mode)


def _profile(image: Image.Image) -> bytes:
    """Return the colour profile, if the thumbnail can have it: the profile of an RGB picture, and no giant."""
    profile: bytes = image.info.get("icc_profile") or b""
    fits = len(profile) <= _LONGEST_PROFILE and profile[_COLOUR_SPACE] == b"RGB "
    return profile if fits else b""
