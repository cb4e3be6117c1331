"""The reasons to refuse a picture: the limits, and a sentence for each reason."""

from collections.abc import Iterator
from contextlib import contextmanager

MAX_PIXELS = 50_000_000  # over all frames
MAX_FRAMES = 2_000

UNKNOWN_FORMAT = "This file is not a picture we can take: please send JPEG, PNG, WebP, GIF, TIFF or BMP."
DAMAGED = "This picture is damaged or incomplete: please save it again and send the new file."
TOO_LARGE = (
    f"This picture has more than {MAX_PIXELS // 10**6} megapixels in all its frames: please send a smaller copy."
)
TOO_MANY_FRAMES = f"This picture has more than {MAX_FRAMES:,} frames: please send a shorter animation."
TOO_MANY_SCANS = (
    "This progressive JPEG has too many passes for its size: "
    "please save it as a standard (baseline) JPEG or send a smaller copy."
)
RARE_KIND = "We cannot take this rare kind of {}: please send a PNG, or a baseline or progressive JPEG."
SEVERAL_PAGES = "This TIFF holds several pages or pictures: please send each as a file of its own."
LOSSY_AS_PNG = (
    "A PNG cannot hold this picture without loss (CMYK, Lab or more than 8 bits per colour): "
    "please send it as an RGB or grey PNG or JPEG."
)


class UnfitPicture(ValueError):
    """The picture is refused. The message is a sentence for the person who sent it."""


@contextmanager
def refuse_any_failure() -> Iterator[None]:
    """Turn every exception into `UnfitPicture(DAMAGED)`.

    Use it only around code that parses bytes: Pillow and struct raise a dozen kinds of exception for malformed files.
    """
    try:
        yield
    except UnfitPicture:
        raise
    except Exception as error:
        raise UnfitPicture(DAMAGED) from error


def refuse_bomb(width: int, height: int, frames: int = 1) -> None:
    """Raise UnfitPicture for too many pixels or frames. Call it with the sizes of the headers, before decoding."""
    if frames > MAX_FRAMES:
        raise UnfitPicture(TOO_MANY_FRAMES)
    if width * height * frames > MAX_PIXELS:
        raise UnfitPicture(TOO_LARGE)
