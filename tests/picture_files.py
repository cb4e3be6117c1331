"""Makes picture files for tests: with Pillow, or byte by byte for files that Pillow does not write."""

import hashlib
import io
import random
import struct
import zlib

import pytest
from PIL import Image, ImageCms, ImageOps

from server import pictures
from server.pictures import UnfitPicture

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
PHOTO = Image.effect_noise((320, 240), 60).convert("RGB")


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
