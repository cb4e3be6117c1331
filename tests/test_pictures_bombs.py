"""Pictures that would take much memory or time, and the turns at the decoder."""

import contextlib
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_files import (
    CONVERTED,
    KEPT,
    PROFILE,
    SIZE,
    bmp,
    cleaned,
    flat_jpeg,
    gif,
    gif_frame,
    gif_with,
    icc_chunk,
    jpeg_tiff,
    jpeg_with,
    longer,
    many_scans,
    png,
    png_chunk,
    png_pixels,
    png_with,
    refusal,
    segment,
    tiff,
    webp,
    webp_canvas,
    webp_chunk,
    webp_image,
)
from PIL import Image

from server import pictures
from server.pictures.turns import turn


@pytest.mark.parametrize(
    "content",
    [
        png(20_000, 20_000, png_chunk(b"IDAT", zlib.compress(bytes(4_000_000)))),
        png(7_072, 7_072, png_chunk(b"IDAT")),
        png(2**31 - 1, 2**31 - 1, png_chunk(b"IDAT")),
        png(1_000, 1_000, png_chunk(b"acTL", struct.pack(">II", 50, 0)), png_chunk(b"IDAT")),
        KEPT["JPEG"].replace(struct.pack(">HH", 23, 37), struct.pack(">HH", 20_000, 20_000)),
        webp(webp_canvas(16_384, 16_384), webp_image(KEPT["WebP"])),
        webp(webp_chunk(b"VP8L", b"\x2f" + (0x3FFF | 0x3FFF << 14).to_bytes(4, "little"))),
        webp(webp_chunk(b"VP8 ", b"\0\0\0\x9d\1\x2a" + struct.pack("<HH", 16_383, 16_383))),
        gif(20_000, 20_000, gif_frame(1, 1)),
        gif(1, 1, gif_frame(1, 1), gif_frame(20_000, 20_000)),
        gif(1, 1, gif_frame(1, 1), gif_frame(1, 1, x=50_000, y=50_000)),
        gif(1_000, 1_000, *[gif_frame(1, 1)] * 51),
        tiff(20_000, 20_000, b""),
        tiff(1, 1, b"\0", t322=(4, 100_000), t323=(4, 600)),
        bmp(20_000, 20_000, b""),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_more_than_fifty_megapixels_are_refused_before_anything_is_decoded(content):
    # decoded, each would be damaged: none has the pixels that it promises
    assert "50 megapixels" in refusal(content)


def test_fifty_megapixels_are_taken():
    assert cleaned(png(10_000, 5_000, png_chunk(b"IDAT", zlib.compress(bytes(1_251 * 5_000))), depth=1))


@pytest.mark.parametrize(
    ("start", "frame", "end"),
    [
        (gif(1, 1)[:-1], gif_frame(1, 1), b";"),
        (
            png(1, 1, png_chunk(b"acTL", struct.pack(">II", 2_001, 0)), png_pixels(1, 1))[:-12],
            png_chunk(b"fcTL", bytes(26)),
            png_chunk(b"IEND"),
        ),
        (webp(webp_canvas(1, 1, flags=2)), webp_chunk(b"ANMF", bytes(16)), b""),
    ],
    ids=["GIF", "PNG", "WebP"],
)
def test_more_than_two_thousand_frames_are_refused_however_small(start, frame, end):
    content = start + 2_001 * frame + end
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:] if start[:4] == b"RIFF" else content
    assert "2,000 frames" in refusal(content)


def test_two_thousand_small_frames_are_taken():
    assert cleaned(gif(1, 1, *[gif_frame(1, 1)] * 2_000))


def test_compressed_metadata_does_not_swell_in_memory():
    bomb = zlib.compress(bytes(100_000_000))
    content = png(1, 1, png_pixels(1, 1))
    profile = png_with(content, png_chunk(b"iCCP", b"icc\0\0" + bomb))
    beginning = zlib.compress(struct.pack(">I", 5_000_000) + PROFILE[4:] + bytes(100_000_000))
    honest = png_with(content, png_chunk(b"iCCP", b"icc\0\0" + beginning[:5_000]))  # but for its end
    text = png_with(content, png_chunk(b"zTXt", b"a\0\0" + bomb), png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb))
    tracemalloc.start()
    try:
        assert cleaned(profile) == content
        assert cleaned(honest) == content
        assert cleaned(text) == content
        assert cleaned(png(1, 1, png_chunk(b"IDAT", bomb)))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_of_what_may_come_once_only_the_first_is_kept():
    profiles = [icc_chunk(zlib.compress(longer(PROFILE, 1_000 + n))) for n in range(3)]
    assert cleaned(png_with(KEPT["PNG"], *profiles)) == png_with(KEPT["PNG"], profiles[0])


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(KEPT["JPEG"], segment(0xFE, b"") * 400_000),
        png_with(KEPT["PNG"], png_chunk(b"tEXt") * 400_000),
        gif_with(KEPT["GIF"], b"!\xfe" + b"\1a" * 600_000 + b"\0"),
        webp(webp_canvas(*SIZE), webp_chunk(b"abcd", b"") * 400_000, webp_image(KEPT["WebP"])),
        tiff(2, 200_000, bytes(400_000), t273=(4, *[8] * 200_000), t278=(4, 1)),
    ],
    ids=["JPEG", "PNG", "GIF", "WebP", "TIFF"],
)
def test_a_picture_in_absurdly_many_parts_is_refused(content):
    assert "damaged" in refusal(content)


def test_a_jpeg_of_very_many_scans_is_refused():
    assert cleaned(flat_jpeg(many_scans(100)))
    assert "too many passes" in refusal(flat_jpeg(many_scans(101)))


def test_the_larger_a_jpeg_is_the_fewer_scans_it_may_have():
    assert cleaned(flat_jpeg(many_scans(20), size=(7_000, 7_000)))
    assert "save it as a standard (baseline) JPEG" in refusal(flat_jpeg(many_scans(21), size=(7_000, 7_000)))


def test_the_scans_of_all_jpeg_strips_count():
    strips = {scans: flat_jpeg(many_scans(scans), size=(7_000, 3_500)) for scans in (20, 21)}
    assert "too many passes" in refusal(jpeg_tiff(strips[21], strips[21], size=(7_000, 7_000), rows=3_500))
    assert "too many passes" not in refusal(jpeg_tiff(strips[20], strips[20][:-9], size=(7_000, 7_000), rows=3_500))


def test_a_large_bmp_of_run_lengths_is_refused():
    lines = 2_000 * (b"\xff\0" * 10 + b"\0\0") + b"\0\1"
    assert "rare kind of BMP" in refusal(bmp(2_550, 2_000, lines, compression=1, palette=bytes(1024)))
    assert cleaned(bmp(2_552, 2_000, bytes(2_552 * 2_000), palette=bytes(1024)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell its peak of memory")
def test_a_jpeg_of_24_megapixels_takes_little_memory(tmp_path):
    noise = Image.effect_noise((6_000, 4_000), 55)
    Image.merge("RGB", (noise, noise, noise)).save(tmp_path / "photo.jpg", quality=55)
    assert (tmp_path / "photo.jpg").stat().st_size > 7_000_000
    program = """
import sys
from server import pictures
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
print(pictures.check(open(sys.argv[1], "rb")).width, peak() - before)
"""
    command = [sys.executable, "-c", program, tmp_path / "photo.jpg"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    width, kilobytes = map(int, result.stdout.split())
    assert width == 6_000
    assert kilobytes < 40_000


LARGE = {
    "PNG": png(5_000, 5_000, png_chunk(b"IDAT", zlib.compress(bytes(626 * 5_000))), depth=1),
    "progressive JPEG": flat_jpeg([(0, 0, 0, 0, 1), (1, 63, 0, 0, 1)], size=(4_200, 4_200)),
    "TIFF": tiff(1_100, 1_000, bytes(1_100_000)),  # it takes as long as a larger picture: it becomes a PNG
}


SMALL = {
    "PNG": KEPT["PNG"],
    "baseline JPEG": flat_jpeg([(0, 63, 0, 0, 1)], size=(7_000, 7_000), marker=b"\xc0"),
    "TIFF": CONVERTED["TIFF"],
}


@contextlib.contextmanager
def being_checked(content: bytes) -> Iterator[threading.Event]:
    """Check a picture in a thread of its own; the event tells that it is done."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (pictures.check(io.BytesIO(content)).close(), done.set()))
    thread.start()
    yield done
    thread.join()
    assert done.is_set()


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_small_pictures_pass_large_ones_at_the_decoder(large, small):
    with contextlib.ExitStack() as later:
        with turn(50_000_000):
            waits = later.enter_context(being_checked(large))
            with being_checked(small) as passes:
                assert passes.wait(20)
            assert not waits.wait(0.1)
        assert waits.wait(20)


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
def test_small_pictures_are_decoded_one_at_a_time(small):
    with contextlib.ExitStack() as later:
        with turn(1):
            waits = later.enter_context(being_checked(small))
            assert not waits.wait(0.1)
        assert waits.wait(20)
