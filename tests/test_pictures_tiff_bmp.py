"""TIFF and BMP become PNG, or are refused if a PNG would lose something."""

import io
import struct

import pytest
from picture_files import PIXELS, SIZE, bmp, cleaned, encoded, refusal, scene, tiff
from PIL import Image, ImageOps


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_tiff_comes_out_upright(mode, compression, orientation):
    content = encoded(scene(mode), "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    upright = scene(mode)
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert (image.mode, image.size) == (mode, upright.size)
        assert image.tobytes() == upright.tobytes()
        assert not image.getexif()


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_16_bits_keeps_its_16_bits(order):
    numbers = (0, 1, 255, 256, 40_000, 65_535)
    content = tiff(3, 2, struct.pack(order + "6H", *numbers), order, t258=(3, 16))
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert image.mode == "I;16"
        assert struct.unpack("<6H", image.tobytes()) == numbers


def test_grey_from_white_to_black_is_turned_right():
    with Image.open(io.BytesIO(cleaned(tiff(3, 1, b"\0\x01\xff", t262=(3, 0))))) as image:
        assert image.tobytes() == b"\xff\xfe\0"


@pytest.mark.parametrize("scale", [256, 257])
def test_the_palette_of_a_tiff_is_kept_however_its_colours_were_scaled(scale):
    colours = [number * scale for number in (*range(256), *range(255, -1, -1), *[7] * 256)]
    with Image.open(io.BytesIO(cleaned(tiff(2, 1, b"\0\5", t262=(3, 3), t320=(3, *colours))))) as image:
        assert image.convert("RGB").tobytes() == bytes((0, 255, 7, 5, 250, 7))


NOT_FOR_PNG = {
    "CMYK": encoded(scene("CMYK"), "TIFF"),
    "Lab": encoded(Image.frombytes("LAB", SIZE, PIXELS[: 3 * 37 * 23]), "TIFF"),
    "YCbCr": encoded(scene("YCbCr"), "TIFF"),
    "YCbCr in LZW": encoded(scene("YCbCr"), "TIFF", compression="tiff_lzw"),
    "float": encoded(scene("L").convert("F"), "TIFF"),
    "32 bits": encoded(scene("L").convert("I"), "TIFF"),
    "RGB of 16 bits": tiff(1, 1, bytes(6), t258=(3, 16, 16, 16), t262=(3, 2), t277=(3, 3)),
    "12 bits": tiff(2, 1, bytes(3), t258=(3, 12)),
    "signed": tiff(1, 1, b"\0", t339=(3, 2)),
    "16 bits from white to black": tiff(1, 1, b"\0\0", t258=(3, 16), t262=(3, 0)),
    "alpha multiplied in": tiff(1, 1, bytes(4), t258=(3, 8, 8, 8, 8), t262=(3, 2), t277=(3, 4), t338=(3, 1)),
    "a channel of unknown meaning": tiff(1, 1, bytes(4), t258=(3, 8, 8, 8, 8), t262=(3, 2), t277=(3, 4), t338=(3, 0)),
    "a palette of 16 bits": tiff(1, 1, b"\0", t262=(3, 3), t320=(3, *range(0, 768 * 80, 80))),
    "a palette not scaled": tiff(1, 1, b"\0", t262=(3, 3), t320=(3, *[200] * 768)),
    "a palette with alpha": tiff(
        1, 1, b"\0\0", t258=(3, 8, 8), t262=(3, 3), t277=(3, 2), t338=(3, 2), t320=(3, *[0] * 768)
    ),
}


@pytest.mark.parametrize("content", NOT_FOR_PNG.values(), ids=NOT_FOR_PNG)
def test_a_tiff_that_png_cannot_hold_without_loss_is_refused_with_a_word_on_what_to_send(content):
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # Pillow would have made something of it
    assert "please send it as an RGB or grey PNG or JPEG" in refusal(content)


def test_a_tiff_of_several_pages_is_refused():
    content = encoded(scene(), "TIFF", save_all=True, append_images=[scene(turn=400)])
    assert "each as a file of its own" in refusal(content)


def test_a_camera_raw_file_is_not_mistaken_for_its_thumbnail():
    assert "each as a file of its own" in refusal(tiff(1, 1, b"\0", t254=(4, 1)))
    assert "each as a file of its own" in refusal(tiff(1, 1, b"\0", t330=(4, 8)))


def test_a_tiff_with_missing_strips_is_refused():
    assert cleaned(tiff(1, 9, bytes(9)))
    assert "damaged" in refusal(tiff(1, 9, bytes(9), t278=(4, 3)))


def test_a_tiff_of_separate_planes_is_taken_if_all_are_there():
    rgb = {"t258": (3, 8, 8, 8), "t262": (3, 2), "t277": (3, 3), "t278": (4, 1), "t284": (3, 2)}
    with Image.open(io.BytesIO(cleaned(tiff(1, 1, b"", t273=(4, 0, 1, 2), **rgb)))) as image:
        assert image.tobytes() == b"II*"
    assert "damaged" in refusal(tiff(1, 1, b"", t273=(4, 0, 1), **rgb))


def test_a_bmp_of_the_oldest_kind_is_taken():
    palette = b"".join(bytes((grey, grey, grey)) for grey in range(256))
    header = struct.pack("<IHHHH", 12, 4, 1, 1, 8)
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26 + 768) + header + palette + b"\1\2\3\4"
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert image.tobytes() == b"\1\2\3\4"


def test_a_bmp_whose_palette_pillow_misreads_is_refused():
    black_and_white = b"\0\0\0\0\xff\xff\xff\0"
    assert "rare kind of BMP" in refusal(bmp(4, 1, b"\0\1\0\1", bits=8, palette=black_and_white))
    with Image.open(io.BytesIO(cleaned(bmp(4, 1, b"\x50\0\0\0", bits=1, palette=black_and_white)))) as image:
        assert image.convert("L").tobytes() == b"\0\xff\0\xff"
