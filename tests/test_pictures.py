"""Pictures: only whole pictures pass the check, and their pixels stay the same."""

import contextlib
import io
import os
import random
import struct
import tempfile
import zlib
from functools import partial

import pytest
from picture_files import (
    ALL,
    CONVERTED,
    KEPT,
    cleaned,
    encoded,
    gif,
    gif_blocks,
    gif_frame,
    gif_with,
    jpeg_with,
    png,
    png_chunk,
    png_pixels,
    png_with,
    refusal,
    scene,
    segment,
    webp,
    webp_chunk,
    webp_image,
)
from PIL import Image

from server import pictures
from server.pictures import UnfitPicture


@pytest.mark.parametrize("content", KEPT.values(), ids=KEPT)
def test_a_picture_without_metadata_stays_as_it_is(content):
    assert cleaned(content) == content


@pytest.mark.parametrize("content", CONVERTED.values(), ids=CONVERTED)
def test_tiff_and_bmp_become_png_with_the_same_pixels(content):
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(cleaned(content))) as after:
        assert (after.format, after.mode, after.size) == ("PNG", before.mode, before.size)
        assert after.convert("RGBA").tobytes() == before.convert("RGBA").tobytes()
        assert after.mode == "P" or after.tobytes() == before.tobytes()


def test_a_cleaned_picture_stays_as_it_is_when_checked_again():
    for content in ALL.values():
        assert cleaned(cleaned(content)) == cleaned(content)


def test_the_file_is_read_from_its_start_and_left_open_and_rewound():
    for content in (KEPT["PNG"], CONVERTED["TIFF in LZW"], CONVERTED["BMP"], KEPT["PNG"][:99], b"no picture"):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            try:
                pictures.check(file).close()
            except UnfitPicture:
                assert content in (KEPT["PNG"][:99], b"no picture")
            assert not file.closed
            assert file.tell() == 0


def test_a_checked_picture_lies_in_a_file_on_disk_until_it_is_closed():
    picture = pictures.check(io.BytesIO(KEPT["PNG"]))
    assert picture.file.tell() == 0
    assert os.fstat(picture.file.fileno()).st_size == picture.bytes
    picture.close()
    assert picture.file.closed


def test_content_decides_and_not_the_name():
    file = io.BytesIO(KEPT["PNG"])
    file.name = "scan.svg"
    picture = pictures.check(file)
    assert picture.format == "png"
    picture.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Dear colleague, please find the picture enclosed.",
        b"BMI 24, blood pressure 120 over 80",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"%PDF-1.7\n%%EOF",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",  # BigTIFF
        encoded(scene(), "ICO"),
        encoded(scene(), "AVIF"),
        encoded(scene(), "JPEG2000"),
        encoded(scene(), "EPS"),
    ],
    ids=str,
)
def test_what_is_no_picture_of_ours_is_refused_with_a_list_of_what_is(content):
    assert refusal(content) == "This file is not a picture we can take: please send JPEG, PNG, WebP, GIF, TIFF or BMP."


@pytest.mark.parametrize("content", ALL.values(), ids=ALL)
def test_a_truncated_picture_is_refused(content):
    last = len(content) - (4 if content.startswith(b"BM") else 1)  # a BMP ends with up to three bytes of padding
    for end in (*range(0, last, 1 + last // 20), last):
        refusal(content[:end])


def test_a_truncated_webp_is_refused_even_if_its_sizes_say_otherwise():
    for content in (KEPT["WebP"], KEPT["lossless WebP"]):
        half = webp_image(content)[8 : len(content) // 2]
        refusal(webp(webp_chunk(content[12:16], half)))


def test_a_png_with_too_little_pixel_data_is_refused_though_its_chunks_are_whole():
    assert cleaned(png(9, 9, png_pixels(9, 9)))
    assert "damaged" in refusal(png(9, 9, png_pixels(9, 8)))
    assert cleaned(png(9, 9, png_pixels(2, 9), depth=1))
    assert "damaged" in refusal(png(9, 9, png_pixels(2, 8), depth=1))
    assert "damaged" in refusal(png(9, 9))


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("height", range(1, 10))
def test_an_interlaced_png_is_refused_if_its_last_row_is_missing(width, height):
    passes = [(range(0, width, 8), range(0, height, 8)), (range(4, width, 8), range(0, height, 8))]
    passes += [(range(0, width, 4), range(4, height, 8)), (range(2, width, 4), range(0, height, 4))]
    passes += [(range(0, width, 2), range(2, height, 4)), (range(1, width, 2), range(0, height, 2))]
    passes += [(range(width), range(1, height, 2))]
    rows = [b"\0" + bytes(len(columns)) for columns, lines in passes if columns for _ in lines]
    whole, short = (png_chunk(b"IDAT", zlib.compress(b"".join(part))) for part in (rows, rows[:-1]))
    assert cleaned(png(width, height, whole, interlace=1))
    assert "damaged" in refusal(png(width, height, short, interlace=1))


def test_a_png_with_rows_filtered_in_an_unknown_way_is_refused():
    assert "damaged" in refusal(png(1, 1, png_chunk(b"IDAT", zlib.compress(b"\7\0"))))


def test_a_png_must_begin_with_its_header():
    content = png(9, 9, png_pixels(9, 9))
    other = png_chunk(b"gAMA", content[16:29])  # or another chunk would say how large the picture is
    assert "damaged" in refusal(content[:8] + other + content[8:])


def test_a_png_of_palette_colours_without_a_palette_is_refused():
    palette = png_chunk(b"PLTE", bytes(range(6)))
    assert cleaned(png(9, 9, palette, png_pixels(9, 9), colour=3))
    assert "damaged" in refusal(png(9, 9, png_pixels(9, 9), colour=3))


def test_a_gif_with_too_little_pixel_data_is_refused_though_its_blocks_are_whole():
    assert cleaned(gif(1, 1, gif_frame(1, 1)))
    assert "damaged" in refusal(gif(9, 9, gif_frame(9, 9)))
    assert "damaged" in refusal(gif(1, 1))


def test_a_gif_is_as_large_as_its_screen_or_its_first_frame():
    content = KEPT["GIF"][:6] + b"\1\0\1\0" + KEPT["GIF"][10:]
    assert cleaned(content) == content
    colours, frame = 13 + 768, gif_frame(1, 1)
    later = content[:colours] + frame + content[colours:]
    picture = pictures.check(io.BytesIO(later))
    assert (picture.width, picture.height) == (1, 1)
    assert picture.file.read() == later
    picture.close()


def test_a_gif_may_have_no_colours_of_its_own():
    content = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x07, 0, 0) + gif_frame(1, 1) + b";"
    assert cleaned(content) == content


def test_every_frame_is_decoded():
    frame = struct.pack(">IIIIIHHBB", 0, 9, 9, 0, 0, 1, 10, 0, 0)
    begin = (png_chunk(b"acTL", struct.pack(">II", 2, 0)), png_chunk(b"fcTL", frame))
    first = (*begin, png_pixels(9, 9))
    second = png_chunk(b"fcTL", b"\0\0\0\1" + frame[4:])
    pixels = b"\0\0\0\2" + zlib.compress(bytes(10 * 9))
    assert cleaned(png(9, 9, *first, second, png_chunk(b"fdAT", pixels)))
    assert "damaged" in refusal(png(9, 9, *first, second, png_chunk(b"fdAT", pixels[:-9])))
    assert "damaged" in refusal(png(9, 9, *begin, png_pixels(9, 8), second, png_chunk(b"fdAT", pixels)))
    pixels = b"\0\0\0\2" + zlib.compress(bytes(10 * 8))
    assert "damaged" in refusal(png(9, 9, *first, second, png_chunk(b"fdAT", pixels)))
    assert "damaged" in refusal(png(9, 9, *first))
    assert "damaged" in refusal(gif(9, 9, gif_frame(1, 1), gif_frame(9, 9)))
    awebp = bytearray(KEPT["animated WebP"])
    last = awebp.rindex(b"VP8 ")
    awebp[last + 8 : last + 60] = bytes(52)
    assert "damaged" in refusal(bytes(awebp))


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum():
    for at in range(8, len(KEPT["PNG"])):
        content = bytearray(KEPT["PNG"])
        content[at] ^= 1
        refusal(bytes(content))


def test_a_png_chunk_one_must_know_to_show_the_picture_is_refused():
    assert "damaged" in refusal(png_with(KEPT["PNG"], png_chunk(b"CgBI", bytes(4))))
    assert cleaned(png_with(KEPT["PNG"], png_chunk(b"caBX", bytes(4)))) == KEPT["PNG"]


def test_garbage_between_the_parts_is_refused():
    assert "damaged" in refusal(jpeg_with(KEPT["JPEG"], b"garbage"))
    assert "damaged" in refusal(jpeg_with(KEPT["JPEG"], b"\0" + segment(0xFE, b"")[1:]))
    assert "damaged" in refusal(jpeg_with(KEPT["JPEG"], segment(0x02, b"")))
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"garbage"))
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"!\xfe" + gif_blocks(b"comment"), b"?" + gif_blocks(b"?")))
    assert "damaged" in refusal(png_with(KEPT["PNG"], b"garbage"))
    assert "damaged" in refusal(webp(webp_chunk(b"VP8 ", random.Random(7).randbytes(300))))


def test_a_jpeg_of_two_frame_headers_is_refused():
    start = KEPT["JPEG"].index(b"\xff\xc0")
    assert "damaged" in refusal(jpeg_with(KEPT["JPEG"], KEPT["JPEG"][start : start + 19]))


def test_a_jpeg_no_browser_shows_is_refused_with_a_word_on_what_to_send():
    for marker in (b"\xff\xc3", b"\xff\xc9", b"\xff\xca", b"\xff\xcf"):
        assert "baseline or progressive" in refusal(KEPT["JPEG"].replace(b"\xff\xc0", marker))


@pytest.mark.parametrize("content", ALL.values(), ids=ALL)
def test_a_mangled_picture_is_taken_or_refused_and_nothing_else(content, capfd):
    chance = random.Random(zlib.crc32(content))
    for _ in range(30):
        mangled = bytearray(content[: chance.randrange(len(content))] if chance.random() < 0.3 else content)
        for _ in range(chance.choice((0, 1, 1, 2, 9)) if mangled else 0):
            near = chance.choice((64, 640, len(mangled)))  # the headers have more to go wrong
            mangled[chance.randrange(min(near, len(mangled)))] = chance.choice((0, 1, 255, chance.randrange(256)))
        with contextlib.suppress(UnfitPicture):
            pictures.check(io.BytesIO(mangled_png(mangled) if chance.random() < 0.7 else mangled)).close()


def mangled_png(content: bytearray) -> bytearray:
    """The same with its checksums made right, so that more than the checksums is tried."""
    at = 8
    while content[:4] == b"\x89PNG" and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if end + 4 <= len(content):
            content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4)
        at = end + 4
    return content


def test_a_full_disk_is_not_called_a_damaged_picture(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b", buffering=0))
    for content in (KEPT["PNG"], CONVERTED["TIFF"]):
        with pytest.raises(OSError, match="No space left"):
            pictures.check(io.BytesIO(content))
