"""Thumbnails of every kind of picture: how large, which way up, which frame, in which colours."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from picture_files import LONG_PROFILE, PROFILE, animated, encoded
from PIL import ExifTags, Image, ImageDraw, ImageOps

from server import pictures
from server.pictures import UnfitPicture, thumbnails

KINDS = [
    ("JPEG", "RGB"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("PNG", "RGB"),
    ("PNG", "RGBA"),
    ("PNG", "L"),
    ("PNG", "LA"),
    ("PNG", "P"),
    ("PNG", "1"),
    ("PNG", "I;16"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("GIF", "P"),
]


def quarters(size: tuple[int, int]) -> Image.Image:
    """A black picture whose left upper quarter is white: it shows which way up it is."""
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1] // 2 - 1), fill="white")
    return image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode != "I;16":
        return image.convert(mode)
    return Image.frombytes(mode, image.size, b"".join(bytes((0, grey)) for grey in image.convert("L").tobytes()))


def made(content: bytes) -> Image.Image:
    """The thumbnail of a picture, checked and cleaned as an upload is."""
    picture = pictures.check(io.BytesIO(content))
    try:
        thumbnail = thumbnails.make(picture.file, picture.format)
    finally:
        picture.close()
    image = Image.open(io.BytesIO(thumbnail))
    image.load()
    assert image.format == "WEBP"
    longer = max(picture.width, picture.height)
    shown = [max(1, round(side * 320 / longer)) if longer > 320 else side for side in (picture.width, picture.height)]
    assert all(abs(side - other) <= 1 for side, other in zip(image.size, shown, strict=True)), "as a browser shows it"
    return image


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """The channels of a pixel."""
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def bright(image: Image.Image) -> str:
    """The quarters of the picture, row by row: w for white, b for black."""
    points = [(x * image.width // 4, y * image.height // 4) for y in (1, 3) for x in (1, 3)]
    return "".join("w" if pixel(image.convert("RGB"), *point)[0] > 128 else "b" for point in points)


@pytest.mark.parametrize("size", [(1300, 900), (900, 1300), (321, 320), (4000, 300)], ids=lambda size: f"{size[0]}")
@pytest.mark.parametrize(("format", "mode"), KINDS, ids=" ".join)
def test_a_picture_of_any_kind_has_a_thumbnail_that_looks_like_it(
    format: str, mode: str, size: tuple[int, int]
) -> None:
    thumbnail = made(encoded(in_mode(quarters(size), mode), format))
    assert max(thumbnail.size) == 320
    assert bright(thumbnail) == "wbbb"


@pytest.mark.parametrize("format", ["TIFF", "BMP"])
def test_a_picture_that_became_a_png_has_a_thumbnail(format: str) -> None:
    assert bright(made(encoded(quarters((700, 500)), format))) == "wbbb"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_thumbnail_stands_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(quarters((1300, 900)), format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
    thumbnail = made(content)
    assert bright(thumbnail) == bright(upright)
    assert (thumbnail.width > thumbnail.height) == (upright.width > upright.height)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_thumbnail_of_an_animation_is_its_first_frame(format: str) -> None:
    frames = [quarters((700, 500)), *(Image.new("RGB", (700, 500), colour) for colour in ("red", "white"))]
    thumbnail = made(encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=70))
    assert not getattr(thumbnail, "is_animated", False)
    assert bright(thumbnail) == "wbbb"


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_a_small_animation_has_a_thumbnail_of_its_own_size(format: str) -> None:
    assert made(animated(format)).size == (37, 23)


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA")], ids=" ".join)
def test_what_is_transparent_stays_transparent(format: str, mode: str) -> None:
    image = quarters((700, 500)).convert(mode)
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (0, 0, 350, 500))
    image.putalpha(alpha)
    thumbnail = made(encoded(image, format))
    assert (pixel(thumbnail, 40, 100)[3], pixel(thumbnail, 280, 100)[3]) == (255, 0)


@pytest.mark.parametrize(("format", "mode"), [("PNG", "P"), ("GIF", "P"), ("PNG", "RGB"), ("PNG", "L")], ids=" ".join)
def test_a_transparent_colour_stays_transparent(format: str, mode: str) -> None:
    image = in_mode(quarters((700, 500)), mode)
    black = {"P": image.getpixel((600, 400)), "RGB": (0, 0, 0), "L": 0}[mode]
    thumbnail = made(encoded(image, format, transparency=black))
    assert (pixel(thumbnail, 40, 40)[3], pixel(thumbnail, 280, 200)[3]) == (255, 0)


def test_grey_of_sixteen_bits_is_as_dark_as_a_browser_shows_it() -> None:
    image = Image.new("I;16", (700, 500), 0x4000)
    red = pixel(made(encoded(image, "PNG")), 100, 100)[0]
    assert abs(red - 0x40) <= 2


def test_a_thumbnail_keeps_the_colour_profile_unless_it_is_long_or_of_other_colours() -> None:
    for profile, mode, kept in ((PROFILE, "RGB", PROFILE), (LONG_PROFILE, "RGB", None), (None, "RGB", None)):
        thumbnail = made(encoded(quarters((700, 500)).convert(mode), "JPEG", icc_profile=profile))
        assert thumbnail.info.get("icc_profile") == kept
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    assert "icc_profile" not in made(encoded(quarters((700, 500)).convert("L"), "JPEG", icc_profile=grey)).info


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_thumbnail_has_no_metadata(format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Amina Wanjiru"
    content = encoded(quarters((700, 500)), format, exif=exif)
    assert b"Amina" in content
    assert b"Amina" not in thumbnails.make(io.BytesIO(content), format.lower())


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(quarters((700, 500)), "PNG")[:-200]], ids=len)
def test_a_damaged_picture_has_no_thumbnail(content: bytes) -> None:
    with pytest.raises(UnfitPicture, match="damaged"):
        thumbnails.make(io.BytesIO(content), "png")


def test_a_bomb_has_no_thumbnail() -> None:
    with pytest.raises(UnfitPicture, match="50 megapixels"):
        thumbnails.make(io.BytesIO(encoded(Image.new("1", (10_000, 6_000)), "PNG")), "png")


MEASURE = """
import io, re, sys
from pathlib import Path
from server.pictures import thumbnails

thumbnails.make(io.BytesIO(Path(sys.argv[1]).read_bytes()), "png")

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")
before = peak()
with open(sys.argv[2], "rb") as file:
    thumbnails.make(file, sys.argv[3])
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell its peak of memory")
@pytest.mark.parametrize(
    ("format", "mode", "megabytes"),
    [("JPEG", "RGB", 40), ("PNG", "RGBA", 140), ("PNG", "P", 70)],  # decoded, the PNGs take 96 MB and 24 MB
    ids=["JPEG", "PNG RGBA", "PNG P"],
)
def test_a_thumbnail_of_24_megapixels_takes_hardly_more_memory_than_the_picture(
    tmp_path: Path, format: str, mode: str, megabytes: int
) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large"
    small.write_bytes(encoded(quarters((400, 300)).convert("RGBA"), "PNG"))
    large.write_bytes(encoded(Image.new("RGB", (6000, 4000), "olive").convert(mode), format))
    command = [sys.executable, "-c", MEASURE, str(small), str(large), format.lower()]
    root = Path(__file__).parent.parent
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert int(said) < megabytes
