"""Checks pictures from cameras, scanners and phones by their content, and removes their metadata.

JPEG, PNG, WebP and GIF are copied without their metadata, so no pixel changes. Browsers do not show TIFF and BMP: these
become PNG, or are refused if a PNG would lose something.
"""

import io
import re
import tempfile
from dataclasses import dataclass
from hashlib import file_digest
from typing import IO

from PIL import Image

from server.pictures import bmp, gif, jpeg, png, tiff, webp
from server.pictures.icc import real_profile
from server.pictures.refusals import UNKNOWN_FORMAT, UnfitPicture, refuse_any_failure, refuse_bomb
from server.pictures.turns import CONVERSION, turn

__all__ = ["Picture", "UnfitPicture", "check"]

# `refuse_bomb` precedes every decoding. Pillow's own limit would warn, and threads cannot safely catch warnings.
Image.MAX_IMAGE_PIXELS = None

# Only the first bytes of a file decide its format. BigTIFF, for files over 4 GB, is not among the formats.
_SIGNATURES = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a"),
    "tiff": re.compile(rb"II\*\0|MM\0\*"),
    "bmp": re.compile(rb"BM.{12}[\x0c(48@l|]\0\0\0", re.DOTALL),  # the sizes of the headers that exist
}
_CLEANERS = {"jpeg": jpeg.clean, "png": png.clean, "webp": webp.clean, "gif": gif.clean}
_OPENERS = {"tiff": tiff.open_picture, "bmp": bmp.open_picture}
_LOADERS = {"tiff": tiff.load, "bmp": bmp.load}

_File = IO[bytes]  # inside the class, `bytes` is a field


@dataclass(frozen=True, slots=True)
class Picture:
    """A checked, cleaned picture. Its bytes lie in a temporary file, not in memory."""

    file: _File  # positioned at 0; closing it deletes it
    format: str  # "jpeg" | "png" | "webp" | "gif"
    width: int  # pixels, upright: as a browser shows the picture
    height: int
    bytes: int
    sha256: str  # hex, of the cleaned bytes

    def close(self) -> None:
        """Delete the temporary file."""
        self.file.close()


def check(file: IO[bytes]) -> Picture:
    """Return the picture in `file` without its metadata. Close it after use.

    Reads all of `file` into memory: check its size before. Leaves `file` open and rewound.
    Raises UnfitPicture if the format is unknown, the picture is damaged or too large, or a PNG cannot hold it.
    """
    file.seek(0)
    source = file.read()
    file.seek(0)
    format = next((name for name, signature in _SIGNATURES.items() if signature.match(source)), None)
    if format is None:
        raise UnfitPicture(UNKNOWN_FORMAT)
    cleaned = tempfile.TemporaryFile()  # noqa: SIM115  # the Picture keeps it open
    try:
        if format in _CLEANERS:
            width, height, frames, cost = _clean(source, format, cleaned)
            del source  # decoding needs the memory
            with turn(cost), refuse_any_failure():
                _decode(cleaned, format, frames)
        else:
            width, height = _convert(source, format, cleaned)
            format = "png"
        size = cleaned.seek(0, io.SEEK_END)
        cleaned.seek(0)
        sha256 = file_digest(cleaned, "sha256").hexdigest()
        cleaned.seek(0)
        return Picture(cleaned, format, width, height, size, sha256)
    except BaseException:
        cleaned.close()
        raise


def _clean(source: bytes, format: str, file: IO[bytes]) -> tuple[int, int, int, float]:
    """Write the picture without metadata; return width, height, number of frames and cost of decoding."""
    with refuse_any_failure():
        content, width, height, frames, cost = _CLEANERS[format](source)
    refuse_bomb(width, height, frames)
    file.write(content)
    file.flush()  # a full disk is no fault of the picture
    return width, height, frames, cost


def _decode(file: IO[bytes], format: str, frames: int) -> None:
    """Decode every frame. Raises if that fails: the picture is damaged."""
    file.seek(0)
    if format == "jpeg":
        jpeg.decode(file)
        return
    with Image.open(file, formats=[format]) as image:
        for frame in range(frames):
            image.seek(frame)
            image.load()


def _convert(source: bytes, format: str, file: IO[bytes]) -> tuple[int, int]:
    """Write a TIFF or BMP as an upright PNG with its colour profile; return width and height."""
    with refuse_any_failure():
        image, profile = _OPENERS[format](source)
    with turn(image.width * image.height * CONVERSION):
        with refuse_any_failure():
            _LOADERS[format](image, source)
        image.save(file, "PNG", icc_profile=real_profile(profile))
    return image.size
