"""Pictures are made here with Pillow, or byte by byte where no Pillow would write what must be refused."""

import contextlib
import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from server import pictures
from server.pictures import UnfitPicture
from server.pictures.turns import turn

SIZE = (37, 23)  # odd, so that no block, byte or word is filled by chance
PIXELS = random.Random(5).randbytes(4 * 37 * 23)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"Jane Doe, born 1970-01-01"
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def longer(profile: bytes, size: int) -> bytes:
    """A profile that says that it is so long, and is."""
    return struct.pack(">I", size) + profile[4:] + random.Random(6).randbytes(size - len(profile))


LONG_PROFILE = longer(PROFILE, 150_000)  # over two segments of a JPEG
LONGEST_PROFILE = longer(PROFILE, 3_000_000)


def scene(mode: str = "RGB", turn: int = 0) -> Image.Image:
    """A picture of noise; another one for another turn."""
    image = Image.frombytes("RGBA", SIZE, PIXELS[turn:] + PIXELS[:turn])
    if mode == "I;16":
        return Image.frombytes("I;16", SIZE, image.tobytes()[: 2 * 37 * 23])
    if mode == "P":
        return image.convert("RGB").quantize(200)
    return image.convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def animated(format: str, mode: str = "RGBA", **options: object) -> bytes:
    others = [scene(mode, turn) for turn in (400, 800)]
    return encoded(scene(mode), format, save_all=True, append_images=others, duration=[70, 80, 90], **options)


def cleaned(content: bytes) -> bytes:
    """What check() makes of a picture; what it says of it is seen to be true."""
    picture = pictures.check(io.BytesIO(content))
    clean = picture.file.read()
    picture.close()
    with Image.open(io.BytesIO(clean)) as image:
        seen = ImageOps.exif_transpose(image)  # as a browser does
        assert (picture.format.upper(), picture.width, picture.height) == (image.format, *seen.size)
    assert (picture.bytes, picture.sha256) == (len(clean), hashlib.sha256(clean).hexdigest())
    return clean


def refusal(content: bytes) -> str:
    """The sentence with which a picture is refused."""
    with pytest.raises(UnfitPicture) as refused:
        pictures.check(io.BytesIO(content))
    assert str(refused.value).endswith(".")
    assert "/" not in str(refused.value)
    return str(refused.value)


def shown(content: bytes) -> list[object]:
    """All that a viewer makes of a picture: every frame's pixels and timing, the loop, the profile."""
    with Image.open(io.BytesIO(content)) as image:
        seen: list[object] = [image.info.get("icc_profile"), image.info.get("loop"), image.info.get("transparency")]
        for frame in range(1 if image.format == "MPO" else getattr(image, "n_frames", 1)):
            image.seek(frame)
            seen += [image.mode, image.size, image.tobytes(), image.getpalette(), image.info.get("duration")]
    return seen


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND")


def icc_chunk(compressed: bytes, name: bytes = b"ICC Profile") -> bytes:
    return png_chunk(b"iCCP", name + b"\0\0" + compressed)


def png_pixels(width: int, height: int) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(bytes((1 + width) * height)))


def png_with(content: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return content[:33] + b"".join(chunks) + content[33:]


def png_kinds(content: bytes) -> list[bytes]:
    kinds, at = [], 8
    while at < len(content):
        kinds.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4])
    return kinds


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg_with(content: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments behind its JFIF one."""
    return content[:20] + b"".join(segments) + content[20:]


def flat_jpeg(scans: list[tuple[int, ...]], size: tuple[int, int] = SIZE, components: int = 1, **more: bytes) -> bytes:
    """A JPEG of one colour. A scan is (Ss, Se, Ah, Al, the numbers of its components), as in T.81, B.2.3.

    All tables have a single code, 0, which means: no difference (DC), and no more coefficients (AC).
    """
    marker = more.get("marker", b"\xc2")[0]
    parts = [struct.pack(">BHHB", 8, size[1], size[0], components)]
    parts += [bytes((number, 0x11, 0)) for number in range(1, components + 1)]
    tables = [segment(0xC4, bytes((kind, 1)) + bytes(15) + b"\0") for kind in (0x00, 0x10)]
    content = b"\xff\xd8" + more.get("app", b"") + segment(0xDB, b"\0" + b"\1" * 64)
    content += segment(marker, b"".join(parts)) + b"".join(tables)
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    for first, last, high, low, *numbers in scans:
        selectors = b"".join(bytes((number, 0)) for number in numbers)
        header = bytes((len(numbers),)) + selectors + bytes((first, last, 16 * high + low))
        codes = 1 if marker == 0xC2 else 2
        content += segment(0xDA, header) + bytes(-(-blocks * len(numbers) * codes // 8))
    return content + b"\xff\xd9"


def many_scans(count: int) -> list[tuple[int, ...]]:
    """The scans of a grey progressive JPEG: a coefficient each; beyond 64 scans, their last bits apart."""
    average = (0, 0, 0, 0, 1)
    if count <= 64:
        return [average, *[(at, at, 0, 0, 1) for at in range(1, count - 1)], (count - 1, 63, 0, 0, 1)]
    last_bits = [*[(at, at, 1, 0, 1) for at in range(1, count - 64)], (count - 64, 63, 1, 0, 1)]
    return [average, *[(at, at, 0, 1, 1) for at in range(1, 64)], *last_bits]


def webp_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def webp(*chunks: bytes) -> bytes:
    return webp_chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def webp_canvas(width: int, height: int, flags: int = 0) -> bytes:
    return webp_chunk(
        b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def webp_image(content: bytes) -> bytes:
    """The one chunk of a WebP in the simple format."""
    return content[12:]


def gif_blocks(*blocks: bytes) -> bytes:
    return b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"


def gif_with(content: bytes, *extensions: bytes) -> bytes:
    """A GIF with more extensions behind its colour table."""
    at = 13 + 6 * (1 << (content[10] & 7))
    return content[:at] + b"".join(extensions) + content[at:]


def gif_frame(width: int, height: int, x: int = 0, y: int = 0) -> bytes:
    """One black pixel, whatever the size says."""
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + b"\2" + gif_blocks(b"\x44\1")


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"".join(blocks) + b";"


def tiff(width: int, height: int, pixels: bytes, order: str = "<", **more: object) -> bytes:
    """An uncompressed grey TIFF of one strip, but for what `more` tags say (t258=(3, 16) is one SHORT of 16)."""
    tags = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 0), 277: (3, 1)}
    tags |= {278: (4, height)} | {int(name[1:]): tag for name, tag in more.items()}  # type: ignore[misc]
    entries, values, base = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, *numbers) in sorted(tags.items()):
        value = struct.pack(order + {3: "H", 4: "I", 7: "B"}[kind] * len(numbers), *numbers)
        if len(value) > 4:
            values, value = values + value, struct.pack(order + "I", base + len(values))
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(tags))
    whole = head + entries + bytes(4) + values
    strip = struct.pack(order + "HHII", 273, 4, 1, 0)
    return whole.replace(strip, strip[:8] + struct.pack(order + "I", len(whole))) + pixels


def bmp(width: int, height: int, pixels: bytes, bits: int = 8, compression: int = 0, palette: bytes = b"") -> bytes:
    offset = 54 + len(palette)
    head = struct.pack("<IiiHHIIIIII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + head + palette + pixels


def exif(orientation: int | None, order: str = "<") -> bytes:
    """Exif as a phone writes it: a width, a secret for the name of its maker, an orientation."""
    tags = [struct.pack(order + "HHIHH", 0x0100, 3, 1, 5, 0), struct.pack(order + "HHII", 0x010F, 2, len(SECRET), 50)]
    if orientation is not None:
        tags.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(tags))
    return (head + b"".join(tags)).ljust(50, b"\0") + SECRET


KEPT = {  # what is kept as it is, byte for byte, having nothing to clean
    "JPEG": encoded(scene(), "JPEG"),
    "progressive JPEG": encoded(scene(), "JPEG", progressive=True),
    "JPEG with restarts": encoded(scene(), "JPEG", restart_marker_blocks=1),
    "grey JPEG": encoded(scene("L"), "JPEG"),
    "CMYK JPEG": encoded(scene("CMYK"), "JPEG"),
    "JPEG of full colour": encoded(scene(), "JPEG", subsampling=0, keep_rgb=True),
    "PNG": encoded(scene(), "PNG"),
    "PNG with alpha": encoded(scene("RGBA"), "PNG"),
    "grey PNG with alpha": encoded(scene("LA"), "PNG"),
    "PNG of 16 bits": encoded(scene("I;16"), "PNG"),
    "PNG of 1 bit": encoded(scene("1"), "PNG"),
    "PNG with a palette": encoded(scene("P"), "PNG", transparency=3),
    "PNG of 16 bits per colour": png(2, 1, png_chunk(b"IDAT", zlib.compress(b"\0" + PIXELS[:12])), depth=16, colour=2),
    "interlaced PNG": png(1, 2, png_chunk(b"IDAT", zlib.compress(b"\0\7\0\x09")), interlace=1),
    "animated PNG": animated("PNG"),
    "animated PNG with another still": animated("PNG", default_image=True),
    "WebP": encoded(scene(), "WEBP"),
    "WebP with alpha": encoded(scene("RGBA"), "WEBP"),
    "lossless WebP": encoded(scene("RGBA"), "WEBP", lossless=True),
    "animated WebP": animated("WEBP", loop=3),
    "animated lossless WebP": animated("WEBP", lossless=True),
    "GIF": encoded(scene("P"), "GIF"),
    "grey GIF": encoded(scene("L"), "GIF"),
    "GIF with transparency": encoded(scene("P"), "GIF", transparency=3),
    "animated GIF": animated("GIF", loop=3),
}
CONVERTED = {
    "TIFF": encoded(scene(), "TIFF"),
    "TIFF in LZW": encoded(scene("RGBA"), "TIFF", compression="tiff_lzw"),
    "TIFF in Deflate": encoded(scene("LA"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF in JPEG": encoded(scene(), "TIFF", compression="jpeg"),
    "grey TIFF": encoded(scene("L"), "TIFF", compression="packbits"),
    "TIFF of a fax": encoded(scene("1"), "TIFF", compression="group4"),
    "TIFF of 16 bits": encoded(scene("I;16"), "TIFF", compression="tiff_lzw"),
    "TIFF with a palette": encoded(scene("P"), "TIFF"),
    "BMP": encoded(scene(), "BMP"),
    "grey BMP": encoded(scene("L"), "BMP"),
    "BMP of 1 bit": encoded(scene("1"), "BMP"),
    "BMP with a palette": encoded(scene("P"), "BMP"),
    "BMP of 16 colours": bmp(
        3, 2, bytes.fromhex("01200000 21000000"), bits=4, palette=b"\1\2\3\0\4\5\6\0\7\7\7\0" + bytes(52)
    ),
    "BMP of run lengths": bmp(4, 2, b"\4\1\0\0\2\0\2\2\0\1", compression=1, palette=b"\1\2\3\0\4\5\6\0\7\7\7\0"),
}
ALL = KEPT | CONVERTED


# What comes out


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


# Whole


@pytest.mark.parametrize("content", ALL.values(), ids=ALL)
def test_a_truncated_picture_is_refused(content):
    last = len(content) - (4 if content.startswith(b"BM") else 1)  # a BMP ends with up to three bytes of padding
    for end in (*range(0, last, 1 + last // 20), last):
        refusal(content[:end])


PHOTO = Image.effect_noise((320, 240), 60).convert("RGB")
CUT = {
    "baseline": {},
    "of full colour": {"subsampling": 0},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 20},
}


def cuts(content: bytes) -> dict[str, bytes]:
    """A JPEG without some of its data, but with its end mark."""
    start = content.index(b"\xff\xda")
    start += 2 + int.from_bytes(content[start + 2 : start + 4])
    half, quarter = (start + len(content)) // 2, (len(content) - start) // 4
    return {
        "no data": content[:start] + b"\xff\xd9",
        "half": content[:half] + b"\xff\xd9",
        "nearly all": content[:-40] + b"\xff\xd9",
        "a quarter zeroed": content[: half - quarter] + bytes(quarter) + content[half:],
        "the last quarter zeroed": content[: -2 - quarter] + bytes(quarter) + b"\xff\xd9",
    }


@pytest.mark.parametrize("what", cuts(KEPT["JPEG"]))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", CUT.values(), ids=CUT)
def test_a_jpeg_without_some_of_its_data_is_refused_though_its_end_mark_is_there(options, mode, what):
    content = encoded(PHOTO.convert(mode), "JPEG", **options)
    cut = cuts(content)[what]
    with Image.open(io.BytesIO(cut)) as image:
        image.load()  # grey, black or noise, and no word of it
    assert cleaned(content) == content
    assert "damaged" in refusal(cut)


def test_a_progressive_jpeg_that_was_cut_between_two_scans_is_refused():
    for mode in ("RGB", "L", "CMYK"):
        content = encoded(PHOTO.convert(mode), "JPEG", progressive=True)
        scans = [at for at in range(len(content)) if content[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
        for at in scans[1:]:
            assert "damaged" in refusal(content[:at] + b"\xff\xd9")


def test_every_coefficient_of_every_component_must_have_come_whole():
    whole = [(0, 0, 0, 1, 1, 2, 3), (0, 0, 1, 0, 1, 2, 3)]
    whole += [(1, 5, 0, 0, 1), (6, 63, 0, 1, 1), (6, 63, 1, 0, 1), (1, 63, 0, 0, 2), (1, 63, 0, 0, 3)]
    assert cleaned(flat_jpeg(whole, components=3))
    for lacking in range(1, len(whole)):
        assert "damaged" in refusal(flat_jpeg(whole[:lacking] + whole[lacking + 1 :], components=3))


def test_a_baseline_jpeg_may_have_a_scan_for_each_component_but_must_have_all():
    scans = [(0, 63, 0, 0, number) for number in (1, 2, 3)]
    for marker in (b"\xc0", b"\xc1"):
        content = flat_jpeg(scans, components=3, marker=marker)
        assert cleaned(content) == content
        assert "damaged" in refusal(flat_jpeg(scans[:2], components=3, marker=marker))


ADOBE = b"Adobe\0\x64\0\0\0\0"
UNUSUAL = {
    "YCCK": flat_jpeg([(0, 63, 0, 0, 1, 2, 3, 4)], components=4, marker=b"\xc0", app=segment(0xEE, ADOBE + b"\2")),
    "YCCK, progressive": flat_jpeg(
        [(0, 0, 0, 0, 1, 2, 3, 4), *[(1, 63, 0, 0, number) for number in (1, 2, 3, 4)]],
        components=4,
        app=segment(0xEE, ADOBE + b"\2"),
    ),
    "RGB": flat_jpeg([(0, 63, 0, 0, 1, 2, 3)], components=3, marker=b"\xc0", app=segment(0xEE, ADOBE + b"\0")),
    "4:2:2": encoded(PHOTO, "JPEG", subsampling="4:2:2"),
    "4:1:1": encoded(PHOTO, "JPEG", subsampling="4:1:1"),
    "optimised": encoded(PHOTO, "JPEG", optimize=True),
    "of the best quality": encoded(PHOTO, "JPEG", quality=100, subsampling=0),
    "of the worst quality": encoded(PHOTO, "JPEG", quality=1),
    "with DNL": KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23)) + b"\xff\xd9",
    "with fill bytes before its end": KEPT["JPEG"][:-2] + b"\xff\xff\xff\xff\xd9",
    "one pixel": encoded(Image.new("RGB", (1, 1)), "JPEG"),
    "one pixel high": encoded(Image.new("RGB", (2_000, 1)), "JPEG", progressive=True),
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_a_whole_jpeg_of_an_unusual_kind_is_taken(content):
    assert shown(cleaned(content)) == shown(content)


def test_padding_before_the_end_of_a_jpeg_is_cut():
    for content in (KEPT["JPEG"], encoded(PHOTO, "JPEG"), encoded(PHOTO, "JPEG", progressive=True)):
        for padding in (bytes(1), bytes(4), bytes(8), bytes(16), b"\xff\0" * 8):
            clean = cleaned(content[:-2] + padding + b"\xff\xd9")
            assert shown(clean) == shown(content)
            assert len(clean) <= len(content) + 8  # so much a decoder reads ahead
        for surplus in (bytes(32), SECRET, SECRET[:16], bytes(8) + SECRET[:8]):
            assert "damaged" in refusal(content[:-2] + surplus + b"\xff\xd9")


def test_a_jpeg_header_at_which_decoders_only_warn_is_put_right():
    jfif = KEPT["JPEG"].replace(b"JFIF\0\1\1", b"JFIF\0\2\1")
    start = KEPT["JPEG"].index(b"\xff\xda") + 11
    scan = KEPT["JPEG"][:start] + b"\0\0\0" + KEPT["JPEG"][start + 3 :]
    for content in (jfif, scan):
        assert content != KEPT["JPEG"]
        assert cleaned(content) == KEPT["JPEG"]


def test_components_of_a_jpeg_may_have_the_same_identifier():
    content = KEPT["JPEG"].replace(b"\1\x22\0\2\x11\1\3\x11\1", b"\0\x22\0\0\x11\1\0\x11\1")
    start = content.index(b"\xff\xda") + 5
    content = content[:start] + bytes((0, content[start + 1], 0, content[start + 3], 0)) + content[start + 5 :]
    assert cleaned(content) == content


def test_a_jpeg_of_a_subsampling_that_we_cannot_check_is_refused_with_a_word_on_what_to_send():
    content = KEPT["JPEG"].replace(b"\1\x22\0\2\x11\1\3\x11\1", b"\1\x42\0\2\x11\1\3\x11\1")
    assert "rare kind of JPEG" in refusal(content)


def jpeg_tiff(
    *parts: bytes,
    size: tuple[int, int] = PHOTO.size,
    rows: int = 80,
    tile: tuple[int, int] | None = None,
    compression: int = 7,
    tables: bytes = b"",
) -> bytes:
    """A grey TIFF of JPEG strips or, with the size of a tile, of JPEG tiles; by default as large as the photo."""
    starts = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    where = {273: (4, *starts), 278: (4, rows), 279: (4, *map(len, parts))}
    if tile:
        where = {322: (4, tile[0]), 323: (4, tile[1]), 324: where[273], 325: where[279]}
    tags = {256: (4, size[0]), 257: (4, size[1]), 258: (3, 8), 259: (3, compression), 262: (3, 1), 277: (3, 1)} | where
    tags |= {347: (7, *tables)} if tables else {}
    pixels = b"".join(parts) + bytes(len(b"".join(parts)) % 2)
    entries, values, base = b"", b"", 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, (kind, *numbers) in sorted(tags.items()):
        value = struct.pack("<" + {3: "H", 4: "I", 7: "B"}[kind] * len(numbers), *numbers)
        if len(value) > 4:
            values, value = values + value, struct.pack("<I", base + len(values))
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    return (
        struct.pack("<4sI", b"II*\0", 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
        + values
    )


STRIPS = [encoded(PHOTO.convert("L").crop((0, top, 320, top + 80)), "JPEG") for top in (0, 80, 160)]
TILES = [
    encoded(PHOTO.convert("L").crop((left, top, left + 176, top + 128)), "JPEG")
    for top in (0, 128)
    for left in (0, 176)
]


@pytest.mark.parametrize(("parts", "tile"), [(STRIPS, None), (TILES, (176, 128))], ids=["strips", "tiles"])
def test_a_tiff_whose_jpeg_strips_or_tiles_lack_data_is_refused(parts, tile):
    with Image.open(io.BytesIO(cleaned(jpeg_tiff(*parts, tile=tile)))) as image:
        assert image.size == PHOTO.size
    for number in range(len(parts)):
        for cut in cuts(parts[number]).values():
            assert "damaged" in refusal(jpeg_tiff(*parts[:number], cut, *parts[number + 1 :], tile=tile))
    small = encoded(Image.new("L", (320, 16)), "JPEG")
    assert "damaged" in refusal(jpeg_tiff(*parts[:-1], small, tile=tile))


def test_the_tables_of_jpeg_strips_may_stand_apart():
    start, end = STRIPS[0].index(b"\xff\xdb"), STRIPS[0].index(b"\xff\xc0")
    tables = STRIPS[0][start:end]
    parts = [part.replace(tables, b"") for part in STRIPS]
    content = jpeg_tiff(*parts, tables=b"\xff\xd8" + tables + b"\xff\xd9")
    assert len(content) < len(jpeg_tiff(*STRIPS))
    assert cleaned(content) == cleaned(jpeg_tiff(*STRIPS))
    assert "damaged" in refusal(jpeg_tiff(*parts))


def test_a_coloured_tiff_in_jpeg_with_a_cut_strip_is_refused():
    content = encoded(PHOTO, "TIFF", compression="jpeg", quality=80)
    with Image.open(io.BytesIO(content)) as image:
        [*starts], [*sizes] = image.tag_v2[273], image.tag_v2[279]
    assert len(starts) > 1
    assert cleaned(content)
    start, end = starts[1], starts[1] + sizes[1]
    for cut in cuts(content[start:end]).values():
        assert "damaged" in refusal(content[:start] + cut.ljust(sizes[1], b"\0") + content[end:])


def test_a_tiff_in_the_old_kind_of_jpeg_is_refused_with_a_word_on_what_to_send():
    assert "rare kind of TIFF" in refusal(jpeg_tiff(*STRIPS, compression=6))


def test_jpeg_strips_that_lie_in_the_same_place_are_refused():
    content = jpeg_tiff(*STRIPS)
    sizes = struct.pack("<III", *map(len, STRIPS))
    assert "damaged" in refusal(content.replace(sizes, struct.pack("<III", *[len(content)] * 3)))


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


# Bombs


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


# Metadata


def secrets_in(kind: str) -> bytes:
    """A picture with a name and a birthday wherever they fit."""
    content = KEPT[kind]
    if kind.endswith("JPEG"):
        thumbnail = b"JFIF\0\1\1\0\0\1\0\1" + bytes((3, 3)) + (SECRET + bytes(2))
        apps = [segment(marker, SECRET) for marker in (*range(0xE0, 0xF0), 0xFE)]
        named = [(0xE0, b"JFXX\0\x10"), (0xE1, XMP), (0xE2, b"MPF\0"), (0xE2, b"FPXR\0")]
        apps += [segment(marker, name + SECRET) for marker, name in (*named, (0xED, b"Photoshop 3.0\0"))]
        apps = [segment(0xE0, thumbnail), segment(0xE1, b"Exif\0\0" + exif(1)), *apps]
        return content[:2] + b"".join(apps) + content[20:] + SECRET
    if kind.endswith("PNG"):
        texts = [png_chunk(b"tEXt", b"Author\0" + SECRET), png_chunk(b"zTXt", b"Author\0\0" + zlib.compress(SECRET, 0))]
        texts += [png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET), png_chunk(b"eXIf", exif(1))]
        texts += [png_chunk(b"tIME", bytes(7)), png_chunk(b"prVt", SECRET)]
        return png_with(content, *texts)[:-12] + texts[0] + png_chunk(b"IEND") + SECRET
    if kind.endswith("WebP"):
        chunks = [webp_chunk(b"EXIF", exif(1)), webp_chunk(b"XMP ", SECRET), webp_chunk(b"prvt", SECRET)]
        body = content[12:] if content[12:16] == b"VP8X" else webp_canvas(*SIZE) + content[12:]
        return webp(body[:8] + bytes((body[8] | 0x0C,)) + body[9:], *chunks) + SECRET
    xmp = b"!\xff" + gif_blocks(b"XMP DataXMP", SECRET)
    plain = b"!\x01" + gif_blocks(bytes(12), SECRET)
    return gif_with(content, b"!\xfe" + gif_blocks(SECRET, SECRET), plain, xmp, b"!\x99" + gif_blocks(SECRET)) + SECRET


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive JPEG", "PNG", "animated PNG", "WebP", "animated WebP", "GIF", "animated GIF"]
)
def test_metadata_and_what_follows_the_end_are_cut_and_the_picture_stays(kind):
    content = secrets_in(kind)
    assert SECRET in content
    clean = cleaned(content)
    assert SECRET not in clean
    assert shown(clean) == shown(KEPT[kind])
    if kind != "WebP":  # which went in with a VP8X chunk, and keeps it
        assert clean == KEPT[kind].replace(b"\0\0\0\1\0\1\0\0", b"\0\0\0\1\0\1\0\0")


def test_a_webp_of_the_simple_format_is_a_single_chunk():
    assert (
        cleaned(webp(webp_image(KEPT["WebP"]), webp_chunk(b"EXIF", exif(6)), webp_chunk(b"ICCP", SECRET)))
        == KEPT["WebP"]
    )


def test_nothing_unknown_is_kept_inside_a_frame_of_an_animated_webp():
    content = KEPT["animated WebP"]
    at = content.index(b"ANMF")
    size = int.from_bytes(content[at + 4 : at + 8], "little")
    frame = webp_chunk(b"ANMF", content[at + 8 : at + 8 + size] + webp_chunk(b"prvt", SECRET))
    assert cleaned(webp(content[12:at], frame, content[at + 8 + size :])) == content


def test_metadata_of_a_tiff_and_a_bmp_do_not_reach_the_png():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (270, 305, 315, 700, 33432, 33723, 37724):
        tags[tag] = SECRET.decode() if tag < 700 or tag == 33432 else SECRET
    content = encoded(scene(), "TIFF", tiffinfo=tags, exif=exif(1), dpi=(300, 300))
    assert content.count(SECRET) >= 7
    assert png_kinds(cleaned(content)) == [b"IHDR", b"IDAT", b"IEND"]
    assert png_kinds(cleaned(encoded(scene(), "BMP", dpi=(300, 300)) + SECRET)) == [b"IHDR", b"IDAT", b"IEND"]


def test_of_a_phone_picture_of_several_images_only_the_main_one_is_kept():
    content = encoded(scene(), "MPO", save_all=True, append_images=[scene(turn=400)])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert cleaned(content) == KEPT["JPEG"]
    assert cleaned(content.replace(b"MPF\0II", b"MPF\0XX")) == KEPT["JPEG"]  # its index is broken


def test_the_segments_between_the_scans_of_a_progressive_jpeg_survive_except_comments():
    content = KEPT["progressive JPEG"]
    last = content.rindex(b"\xff\xc4")
    assert content.index(b"\xff\xda") < last < content.rindex(b"\xff\xda")
    commented = content[:last] + segment(0xFE, SECRET) + segment(0xE1, b"Exif\0\0" + exif(1)) + content[last:]
    assert cleaned(commented) == content


def test_a_jpeg_may_have_fill_bytes_and_no_jfif():
    content = KEPT["JPEG"][:2] + b"\xff\xff\xff" + KEPT["JPEG"][20:]
    assert shown(cleaned(content)) == shown(content)


def test_colour_information_of_a_png_is_kept():
    chunks = [
        png_chunk(b"gAMA", struct.pack(">I", 45_455)),
        png_chunk(b"cHRM", struct.pack(">8I", *range(1, 9))),
        png_chunk(b"sBIT", b"\5\6\5"),
        png_chunk(b"cICP", b"\x09\x10\0\1"),
        png_chunk(b"mDCV", bytes(24)),
        png_chunk(b"cLLI", bytes(8)),
        png_chunk(b"bKGD", bytes(6)),
        png_chunk(b"pHYs", struct.pack(">IIB", 3_000, 3_000, 1)),
    ]
    for chunk in [*chunks, png_chunk(b"sRGB", b"\0"), png_chunk(b"tRNS", bytes(6))]:
        assert cleaned(png_with(KEPT["PNG"], chunk)) == png_with(KEPT["PNG"], chunk)


def test_the_loop_and_the_profile_of_a_gif_are_kept():
    profile = b"!\xff" + gif_blocks(b"ICCRGBG1012", *(PROFILE[at : at + 255] for at in range(0, len(PROFILE), 255)))
    again = b"!\xff" + gif_blocks(b"ANIMEXTS1.0", b"\1\7\0")
    content = gif_with(KEPT["animated GIF"], profile, again)
    assert b"NETSCAPE2.0" in content
    assert cleaned(content) == content


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [PROFILE, LONG_PROFILE, LONGEST_PROFILE], ids=["short", "long", "over 1 MB"])
def test_the_colour_profile_is_kept(format, profile):
    content = encoded(scene(), format, icc_profile=profile)
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert image.info["icc_profile"] == profile
    assert format == "TIFF" or cleaned(content) == content


def bmp_with_profile(profile: bytes, kind: bytes = b"DEBM") -> bytes:
    content = encoded(scene(), "BMP")
    header = bytearray(struct.pack("<I", 124) + content[18:54].ljust(120, b"\0"))
    struct.pack_into("<II", header, 112, 124 + len(content) - 54, len(profile))
    header[56:60] = kind
    return content[:10] + struct.pack("<I", 14 + 124) + bytes(header) + content[54:] + profile


def test_the_colour_profile_of_a_bmp_is_kept():
    for kind, profile in ((b"DEBM", PROFILE), (b"DEBM", LONGEST_PROFILE), (b"BGRs", None)):
        with Image.open(io.BytesIO(cleaned(bmp_with_profile(profile or PROFILE, kind)))) as image:
            assert image.info.get("icc_profile") == profile
            assert image.tobytes() == scene().tobytes()


def with_profile(format: str, profile: bytes) -> bytes:
    """A picture with what it says is a profile."""
    if format == "PNG":
        return png_with(KEPT["PNG"], icc_chunk(zlib.compress(profile, 0)))
    if format == "GIF":
        blocks = [profile[at : at + 255] for at in range(0, len(profile), 255)]
        return gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"ICCRGBG1012", *blocks))
    return bmp_with_profile(profile) if format == "BMP" else encoded(scene(), format, icc_profile=profile)


NO_PROFILES = {
    "text": SECRET * 9,
    "a header too short": (struct.pack(">I", 99) + PROFILE[4:74] + SECRET),
    "another signature": PROFILE[:36] + b"ACSP" + PROFILE[40:-25] + SECRET,
    "a profile cut short": struct.pack(">I", len(PROFILE) + 1) + PROFILE[4:-25] + SECRET,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("profile", NO_PROFILES.values(), ids=NO_PROFILES)
def test_what_is_no_colour_profile_is_cut(format, profile):
    content = with_profile(format, profile)
    assert SECRET in content
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert "icc_profile" not in image.info
    assert SECRET not in cleaned(content)
    assert cleaned(cleaned(content)) == cleaned(content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_what_follows_a_colour_profile_is_cut(format):
    content = with_profile(format, PROFILE + SECRET)
    assert SECRET in content
    clean = cleaned(content)
    with Image.open(io.BytesIO(clean)) as image:
        assert image.info.get("icc_profile", PROFILE) == PROFILE
    assert SECRET not in clean
    assert (format == "PNG" and b"iCCP" in clean) or clean == cleaned(with_profile(format, PROFILE))


def test_a_webp_whose_profile_is_cut_does_not_promise_one():
    assert cleaned(with_profile("WEBP", SECRET))[20] & 0x20 == 0
    assert cleaned(with_profile("WEBP", PROFILE))[20] & 0x20


@pytest.mark.parametrize(
    "parts",
    [
        [(1, 2, PROFILE[:300]), (2, 2, PROFILE[300:]), (3, 3, SECRET)],
        [(1, 1, PROFILE), (2, 2, SECRET)],
        [(1, 1, PROFILE), (1, 1, SECRET)],
        [(1, 2, PROFILE + SECRET)],
        [(0, 1, PROFILE + SECRET)],
        [(0, 0, SECRET)],
    ],
    ids=["one too many", "a second after the only", "the first twice", "one missing", "a zeroth", "none"],
)
def test_a_colour_profile_of_a_jpeg_whose_parts_do_not_fit_together_is_cut(parts):
    segments = [segment(0xE2, b"ICC_PROFILE\0" + bytes(numbers) + part) for *numbers, part in parts]
    assert cleaned(jpeg_with(KEPT["JPEG"], *segments, segment(0xE2, b"ICC_PROFILE\0" + SECRET))) == KEPT["JPEG"]
    assert cleaned(jpeg_with(KEPT["JPEG"], *segments)) == KEPT["JPEG"]


def test_the_parts_of_a_colour_profile_of_a_jpeg_may_come_in_any_order():
    parts = [segment(0xE2, b"ICC_PROFILE\0\2\2" + PROFILE[300:]), segment(0xE2, b"ICC_PROFILE\0\1\2" + PROFILE[:300])]
    assert cleaned(jpeg_with(KEPT["JPEG"], *parts)) == encoded(scene(), "JPEG", icc_profile=PROFILE)


def test_of_an_adobe_segment_only_its_twelve_bytes_are_kept():
    content = KEPT["CMYK JPEG"]
    start = content.index(b"\xff\xee\0\x0eAdobe")
    before, adobe, after = content[:start], content[start + 4 : start + 16], content[start + 16 :]
    other = segment(0xEE, b"Adobe  " + SECRET)  # the last of several counts
    assert cleaned(before + other + segment(0xEE, adobe + SECRET) + after) == content
    assert cleaned(jpeg_with(KEPT["JPEG"], segment(0xEE, b"Adobe" + SECRET[:6]))) == KEPT["JPEG"]


def test_adobe_and_colour_profile_are_cut_where_a_jpeg_decoder_does_not_look_for_them():
    content = KEPT["progressive JPEG"]
    last = content.rindex(b"\xff\xda")
    for extra in (segment(0xEE, b"Adobe\0\x64\0\0\0\0\1"), segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE)):
        assert cleaned(content[:last] + extra + content[last:]) == content


def test_text_in_a_segment_of_a_jpeg_that_decoders_skip_is_refused():
    end = KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23)) + b"\xff\xd9"
    assert cleaned(end) == end
    assert "damaged" in refusal(KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23) + SECRET) + b"\xff\xd9")


def test_text_in_and_behind_the_profile_of_a_png_is_cut():
    clean = png_with(KEPT["PNG"], icc_chunk(zlib.compress(PROFILE)))
    for chunk in (icc_chunk(zlib.compress(PROFILE), SECRET), icc_chunk(zlib.compress(PROFILE) + SECRET)):
        assert cleaned(png_with(KEPT["PNG"], chunk)) == clean
    for chunk in (
        png_chunk(b"iCCP", SECRET),
        png_chunk(b"iCCP", b"icc\0\1" + zlib.compress(PROFILE)),
        icc_chunk(SECRET),
        icc_chunk(b""),
    ):
        assert cleaned(png_with(KEPT["PNG"], chunk)) == KEPT["PNG"]


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"cICP", b"mDCV", b"cLLI"])
def test_text_in_a_png_chunk_that_is_too_long_is_cut(kind):
    assert cleaned(png_with(KEPT["PNG"], png_chunk(kind, bytes(32) + SECRET))) == KEPT["PNG"]


def test_text_in_a_png_chunk_that_the_pixels_need_is_refused():
    for kind in (b"tRNS", b"PLTE", b"acTL", b"fcTL"):
        assert "damaged" in refusal(png_with(KEPT["PNG"], png_chunk(kind, bytes(768) + SECRET)))
    assert "damaged" in refusal(KEPT["PNG"][:-12] + png_chunk(b"IEND", SECRET))


def test_text_in_the_chunks_of_a_webp_is_cut():
    content = KEPT["animated WebP"]
    assert content[12:20] == b"VP8X\n\0\0\0"
    at = content.index(b"ANIM")
    longer = (webp_chunk(b"VP8X", content[20:30] + SECRET), webp_chunk(b"ANIM", content[at + 8 : at + 14] + SECRET))
    assert cleaned(webp(longer[0], content[30:at], longer[1], longer[1], content[at + 14 :])) == content
    image, canvas = webp_image(KEPT["WebP"]), webp_canvas(*SIZE)
    assert cleaned(webp(canvas, image, webp_chunk(b"VP8 ", SECRET))) == webp(canvas, image)
    profiles = [webp_chunk(b"ICCP", profile) for profile in (PROFILE, PROFILE[:-25] + SECRET)]
    canvas = webp_canvas(*SIZE, flags=0x20)
    assert cleaned(webp(canvas, *profiles, image)) == webp(canvas, profiles[0], image)


def test_text_in_the_extensions_of_a_gif_is_cut_or_refused():
    content = KEPT["animated GIF"]
    loop = b"!\xff" + gif_blocks(b"NETSCAPE2.0", b"\1\3\0")
    assert loop in content
    for wordy in (
        gif_blocks(b"NETSCAPE2.0", b"\1\3\0", SECRET),
        gif_blocks(b"NETSCAPE2.0", SECRET, b"\1\3\0", b"\1ab"),
        gif_blocks(b"NETSCAPE2.0", b"\1\3\0") + b"!\xff" + gif_blocks(b"NETSCAPE2.0", b"\1ab"),
    ):
        assert cleaned(content.replace(loop, b"!\xff" + wordy)) == content
    assert cleaned(gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"NETSCAPE2.0", SECRET))) == KEPT["GIF"]
    assert cleaned(gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"NETSCAPE2.0" + SECRET, b"\1\3\0"))) == KEPT["GIF"]
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"!\xf9" + gif_blocks(bytes(4), SECRET)))
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"!\xf9" + gif_blocks(bytes(4) + SECRET)))


def test_pixels_are_not_taken_for_a_colour_profile():
    pixels = (bytes(16) + b"DEBM" + bytes(52) + struct.pack("<II", 0, 50)).ljust(192, b"\0")  # as in a longer header
    for content in (bmp(8, 8, pixels, bits=24), tiff(1, 1, b"\0", t34675=(3, 7))):
        with Image.open(io.BytesIO(cleaned(content))) as image:
            assert "icc_profile" not in image.info


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "animated WEBP"])
def test_of_exif_only_the_orientation_is_kept(format, orientation, order):
    content = exif_in(format, exif(orientation, order))
    clean = cleaned(content)
    assert SECRET in content
    assert SECRET not in clean
    with Image.open(io.BytesIO(clean)) as image, Image.open(io.BytesIO(content)) as original:
        assert dict(image.getexif()) == {0x0112: orientation}
        assert image.size == original.size == SIZE
        assert ImageOps.exif_transpose(image).tobytes() == ImageOps.exif_transpose(original).tobytes()
    assert len(clean) < len(exif_in(format, exif(orientation, order)))
    assert cleaned(clean) == clean


def test_the_first_exif_of_a_jpeg_counts():
    others = [segment(0xE1, XMP), segment(0xE5, b"Exif\0\0" + exif(3)), segment(0xE1, b"JFIF\0")]
    exifs = [segment(0xE1, b"Exif\0\0" + exif(orientation)) for orientation in (6, 3)]
    clean = cleaned(jpeg_with(KEPT["JPEG"], *others, *exifs))
    assert clean == cleaned(jpeg_with(KEPT["JPEG"], exifs[0]))
    with Image.open(io.BytesIO(clean)) as image:
        assert image.getexif()[0x0112] == 6


def exif_in(format: str, content: bytes) -> bytes:
    if format == "JPEG":
        return encoded(scene(), format, exif=b"Exif\0\0" + content)
    if format.startswith("animated"):
        return animated(format.split()[1], exif=content)
    return encoded(scene(), format, exif=content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "broken",
    [
        exif(None),
        exif(0),
        exif(1),
        exif(9),
        exif(6)[:20],
        b"",
        b"II",
        b"nonsense" * 9,
        b"MM\0*\xff\xff\xff\xff" + bytes(40),
    ],
    ids=str,
)
def test_exif_without_a_sensible_orientation_is_dropped(format, broken):
    content = {
        "JPEG": lambda: jpeg_with(KEPT["JPEG"], segment(0xE1, b"Exif\0\0" + broken)),
        "PNG": lambda: png_with(KEPT["PNG"], png_chunk(b"eXIf", broken)),
        "WEBP": lambda: webp(webp_canvas(*SIZE, flags=8), webp_image(KEPT["WebP"]), webp_chunk(b"EXIF", broken)),
    }[format]()
    plain = webp(webp_canvas(*SIZE), webp_image(KEPT["WebP"]))
    assert cleaned(content) == {"JPEG": KEPT["JPEG"], "PNG": KEPT["PNG"], "WEBP": plain}[format]


# TIFF and BMP


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
