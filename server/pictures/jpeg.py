"""Pictures as they come from cameras, scanners and phones: checked by content, freed of metadata.

JPEG, PNG, WebP and GIF are cleaned byte by byte, so that not one pixel changes; TIFF and BMP, which browsers
do not show, become PNG where PNG can hold them without loss.
"""

import io
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from typing import IO, NamedTuple

from PIL import Image, WebPImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

MAX_PIXELS = 50_000_000  # over all frames
_MAX_FRAMES = 2_000
_MAX_SCANS = 100  # in a JPEG: each is a pass over the whole picture; encoders write about ten
_MAX_PARTS = 1_000_000  # chunks, segments, blocks: 20 MB of GIF have some 160,000
_MAX_RLE_PIXELS = 5_000_000  # in a BMP: a second or less
_MAX_TIFF_VALUES = 100_000  # in one tag: Pillow makes several objects of each strip's offset

# Our own check precedes every decoding. Pillow's would warn, and catching warnings is not safe in threads.
Image.MAX_IMAGE_PIXELS = None

assert WebPImagePlugin.SUPPORTED  # noqa: S101  # imported lest the first WebP makes Pillow load all its plugins

# How a file must begin; nothing else decides what it is. BigTIFF, for more than 4 GB, is left out.
_SIGNATURES = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a"),
    "tiff": re.compile(rb"II\*\0|MM\0\*"),
    "bmp": re.compile(rb"BM.{12}[\x0c(48@l|]\0\0\0", re.DOTALL),  # with a header of a size that there is
}

_UNKNOWN = "This file is not a picture we can take: please send JPEG, PNG, WebP, GIF, TIFF or BMP."
_DAMAGED = "This picture is damaged or incomplete: please save it anew and send it again."
_TOO_LARGE = f"This picture has over {MAX_PIXELS // 10**6} megapixels in all its frames: please send a smaller one."
_TOO_MANY_FRAMES = f"This picture has more than {_MAX_FRAMES:,} frames: please send a shorter one."
_RARE = "We cannot take this rare kind of {}: please send a PNG, or a baseline or progressive JPEG."
_SEVERAL_PAGES = "This TIFF holds several pages or pictures: please send each as a file of its own."
_NOT_FOR_PNG = (
    "This picture holds what a PNG for browsers loses, such as CMYK, Lab or more than 8 bits per colour: "
    "please send it as an RGB or grey PNG or JPEG."
)

# Decoding 50 megapixels takes some hundred megabytes, so one picture is decoded at a time.
_decoding = threading.Lock()

_File = IO[bytes]  # for Picture, in which `bytes` is a number


class UnfitPicture(ValueError):
    """A picture that is not taken. Its message is one plain sentence for a person, without a path."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A checked, cleaned picture; its bytes lie in a temporary file, not in memory."""

    file: _File  # positioned at 0; without a name, and gone once closed
    format: str  # "jpeg" | "png" | "webp" | "gif"
    width: int  # pixels, upright: as a browser shows it, which heeds the orientation
    height: int
    bytes: int
    sha256: str  # hex, of the cleaned bytes

    def close(self) -> None:
        self.file.close()


def check(file: IO[bytes]) -> Picture:
    """The picture in `file`, whole and freed of metadata, for the caller to close.

    Reads `file` at once, from its start, and leaves it open and rewound; its size is for the caller to bound.
    Raises UnfitPicture if it is of no format we take, damaged, too large, or cannot be kept without loss.
    """
    file.seek(0)
    source = file.read()
    file.seek(0)
    format = next((name for name, signature in _SIGNATURES.items() if signature.match(source)), None)
    if format is None:
        raise UnfitPicture(_UNKNOWN)
    cleaned = tempfile.TemporaryFile()  # noqa: SIM115  # it outlives this function, within the Picture
    try:
        if format in _STRIPPERS:
            with _any_failure_means_damage():
                content, width, height, frames = _STRIPPERS[format](source)
            _refuse_bomb(width, height, frames)
            cleaned.write(content)
            del source, content  # decoding needs the room
            with _decoding, _any_failure_means_damage():
                _decode(cleaned, format, frames)
        else:
            with _decoding:
                width, height = _write_png(source, format, cleaned)
            format = "png"
        size = cleaned.seek(0, io.SEEK_END)
        cleaned.seek(0)
        digest = file_digest(cleaned, "sha256").hexdigest()
        cleaned.seek(0)
        return Picture(cleaned, format, width, height, size, digest)
    except BaseException:
        cleaned.close()
        raise


@contextmanager
def _any_failure_means_damage() -> Iterator[None]:
    """Around what only parses bytes: to malformed ones, Pillow and struct raise a dozen kinds of exception."""
    try:
        yield
    except UnfitPicture:
        raise
    except Exception as error:
        raise UnfitPicture(_DAMAGED) from error


def _refuse_bomb(width: int, height: int, frames: int = 1) -> None:
    """By what the headers say, before anything is decoded."""
    if frames > _MAX_FRAMES:
        raise UnfitPicture(_TOO_MANY_FRAMES)
    if width * height * frames > MAX_PIXELS:
        raise UnfitPicture(_TOO_LARGE)


def _decode(file: IO[bytes], format: str, frames: int) -> None:
    """Decodes every frame, only to see that it can be done."""
    with Image.open(file, formats=[format]) as image:
        image.draft(None, (1, 1))  # JPEG only: reads all data, but makes an eighth of its width and height
        for frame in range(frames):
            image.seek(frame)
            image.load()


class _Cleaned(NamedTuple):
    content: bytearray
    width: int
    height: int
    frames: int


class _Reader:
    """Takes parts off the front of bytes that must neither end early nor consist of absurdly many parts."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.at = self.parts = 0

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        self.parts += 1
        if not start <= self.at <= len(self.source) or self.parts > _MAX_PARTS:
            raise UnfitPicture(_DAMAGED)
        return self.source[start : self.at]

    def number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(number)

    def since(self, start: int) -> memoryview:
        return memoryview(self.source)[start : self.at]


def _orientation_only(exif: bytes) -> bytes:
    """Exif data with nothing left but how to turn the picture; empty where it stands upright.

    CIPA DC-008: the orientation is the SHORT 0x0112 in the first directory of a TIFF, 1 to 8, with 1 as default.
    """
    exif = exif.removeprefix(b"Exif\0\0")  # JPEG's, but found elsewhere too
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(entries):
            tag, kind, value = struct.unpack_from(order + "HH4xH", exif, start + 2 + 12 * entry)
            if (tag, kind) == (0x0112, 3) and 2 <= value <= 8:
                return struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, 0x0112, 3, 1, value, 0, 0)
    except struct.error:
        pass  # Exif is often broken; the picture is whole without it
    return b""


def _upright(width: int, height: int, exif: bytes) -> tuple[int, int]:
    """The size in which it is shown: orientations 5 to 8 lie on their side. `exif` is by `_orientation_only`."""
    return (height, width) if exif and exif[19] >= 5 else (width, height)


# What ends entropy-coded data: FF, and behind it no stuffed 00, no restart marker, no fill byte.
_END_OF_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")

_JPEG_APPS = {0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}


def _strip_jpeg(source: bytes) -> _Cleaned:
    """Keeps what decoding needs, JFIF without its thumbnail, Adobe's colour transform and the ICC profile.

    ITU-T T.81 (annex B) has the segments, T.871 JFIF, ICC.1 (B.4) the profile. What lies behind EOI is cut:
    the further pictures of CIPA DC-007 (MPF), the video of a motion photo, and anything else.
    """
    reader = _Reader(source)
    cleaned = bytearray(reader.take(2))  # SOI
    jfif, exif, scans, sizes = b"", b"", 0, []
    while True:
        start = reader.at
        if reader.take(1) != b"\xff":
            raise UnfitPicture(_DAMAGED)
        while (marker := reader.number("B")) == 0xFF:
            pass  # T.81, B.1.1.2: any number of fill bytes may precede a marker
        if marker == 0xD9:  # EOI
            break
        payload = reader.take(reader.number(">H") - 2)
        if marker == 0xE0 and payload.startswith(b"JFIF\0"):
            jfif = b"\xff\xe0\0\x10" + payload[:12].ljust(14, b"\0")
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            exif = exif or payload
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:  # APPn, COM
            if payload.startswith(_JPEG_APPS.get(marker, ())):
                cleaned += reader.since(start)
        elif marker in (0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xDC, 0xDD):  # SOF, DHT, SOS, DQT, DNL, DRI
            if marker <= 0xC2:
                sizes.append(struct.unpack_from(">HH", payload, 1))
            if marker == 0xDA:
                scans += 1
                end = _END_OF_SCAN.search(source, reader.at)
                if not end or scans > _MAX_SCANS:
                    raise UnfitPicture(_DAMAGED)
                reader.at = end.start()
            cleaned += reader.since(start)
        else:  # C0 to CF: lossless, hierarchical or arithmetic coding, which browsers do not show
            raise UnfitPicture(_RARE.format("JPEG") if 0xC0 <= marker <= 0xCF else _DAMAGED)
    [(height, width)] = sizes
    if exif := _orientation_only(exif):
        width, height = _upright(width, height, exif)
        exif = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(exif)) + b"Exif\0\0" + exif
    cleaned[2:2] = jfif + exif
    cleaned += b"\xff\xd9"
    return _Cleaned(cleaned, width, height, 1)


_PNG_KEPT = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD pHYs cICP mDCV cLLI acTL fcTL fdAT".split()
)
# The passes of an interlaced PNG: where each begins and steps to, in columns and rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _strip_png(source: bytes) -> _Cleaned:
    """Keeps the chunks that make the pixels and their colours, still or moving (W3C PNG, third edition)."""
    reader = _Reader(source)
    cleaned = bytearray(reader.take(8))  # the signature
    header = source[8:29]
    if not header.startswith(b"\0\0\0\rIHDR"):
        raise UnfitPicture(_DAMAGED)
    width, height = struct.unpack_from(">II", header, 8)
    exif, announced, frames, still = b"", 0, 0, 0
    seen: set[bytes] = set()
    pixels = _PngPixels(0, 0, header)
    while b"IEND" not in seen:
        start = reader.at
        chunk = reader.take(4 + reader.number(">I"))
        kind = chunk[:4]
        if reader.number(">I") != zlib.crc32(chunk) or (kind[:1].isupper() and kind not in _PNG_KEPT):
            raise UnfitPicture(_DAMAGED)  # upper case means: not to be shown by who does not know the chunk
        match kind:
            case b"eXIf":
                exif = chunk[4:]
            case b"acTL" if seen.isdisjoint((b"acTL", b"IDAT")):
                (announced,) = struct.unpack_from(">I", chunk, 4)
            case b"fcTL":
                frames += 1
                w, h = struct.unpack_from(">II", chunk, 8)
                if w > width or h > height or frames > announced:
                    raise UnfitPicture(_DAMAGED)
                if b"IDAT" in seen:
                    pixels.refuse_if_short()
                    pixels = _PngPixels(w, h, header)
            case b"IDAT" if kind not in seen:
                still = 0 if frames else 1  # what is no frame is shown where animations are not known
                _refuse_bomb(width, height, announced + still)
                pixels = _PngPixels(width, height, header)
                if header[17] == 3 and b"PLTE" not in seen:
                    raise UnfitPicture(_DAMAGED)  # Pillow would take it for grey
        if kind in (b"IDAT", b"fdAT"):
            pixels.inflate(chunk[4 if kind == b"IDAT" else 8 :])
        if kind in _PNG_KEPT and (kind not in seen or kind in (b"IDAT", b"fcTL", b"fdAT")):
            cleaned += reader.since(start)
            seen.add(kind)
    pixels.refuse_if_short()
    if frames != announced or b"IDAT" not in seen:
        raise UnfitPicture(_DAMAGED)
    if exif := _orientation_only(exif):
        chunk = b"eXIf" + exif
        cleaned[33:33] = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))  # after IHDR
    return _Cleaned(cleaned, *_upright(width, height, exif), frames + still)


class _PngPixels:
    """Counts a picture's pixel data while it inflates; if there are too few, Pillow leaves the rest black."""

    def __init__(self, width: int, height: int, header: bytes) -> None:
        depth, colour, _, _, interlaced = header[16:21]
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        self.lacking = 0
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
            self.lacking += rows * (1 + (columns * bits + 7) // 8) if columns else 0
        self.inflater = zlib.decompressobj()

    def inflate(self, part: bytes) -> None:
        for at in range(0, len(part), 1024):  # which inflate to 1 MB at most
            if self.lacking > 0:
                self.lacking -= len(self.inflater.decompress(part[at : at + 1024]))

    def refuse_if_short(self) -> None:
        if self.lacking > 0:
            raise UnfitPicture(_DAMAGED)


_WEBP_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM")


def _strip_webp(source: bytes) -> _Cleaned:
    """Keeps the chunks that make the pixels and their colours, still or moving (RFC 9649, section 2)."""
    reader = _Reader(source)
    reader.take(4)  # RIFF
    end = 8 + reader.number("<I")
    reader.take(4)  # WEBP
    cleaned = bytearray(reader.since(0))
    exif, frames, first = b"", 0, source[12:16]
    for kind, payload in _webp_chunks(reader, end):
        if kind == b"EXIF":
            exif = payload
        elif kind == b"ANMF":
            frames += 1
            frame = _Reader(payload)
            cleaned += _webp_chunk(kind, frame.take(16), *_webp_chunks(frame, len(payload)))
        elif kind in _WEBP_KEPT:
            cleaned += _webp_chunk(kind, payload)
        if first != b"VP8X":
            break  # the simple format is a single chunk
    if first == b"VP8X":
        width, height = (1 + int.from_bytes(source[at : at + 3], "little") for at in (24, 27))
        exif = _orientation_only(exif)
        cleaned[20] = cleaned[20] & ~0x0C | (0x08 if exif else 0)  # the flags of EXIF and XMP
        cleaned += _webp_chunk(b"EXIF", exif) if exif else b""
    elif first == b"VP8L":
        bits = int.from_bytes(source[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", source, 26))
    struct.pack_into("<I", cleaned, 4, len(cleaned) - 8)
    return _Cleaned(cleaned, *_upright(width, height, exif), max(frames, 1))


def _webp_chunks(reader: _Reader, end: int) -> Iterator[tuple[bytes, bytes]]:
    while reader.at < end:
        kind, payload = reader.take(4), reader.take(reader.number("<I"))
        reader.at += len(payload) % 2  # padding, which some leave out at the end
        yield kind, payload


def _webp_chunk(kind: bytes, payload: bytes, *inner: tuple[bytes, bytes]) -> bytes:
    payload += b"".join(_webp_chunk(*chunk) for chunk in inner if chunk[0] in _WEBP_KEPT)
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


_GIF_KEPT = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")  # the loop, under two names; the ICC profile


def _strip_gif(source: bytes) -> _Cleaned:
    """Keeps images, their graphic controls, the loop and ICC profile; drops comments and plain text (GIF89a)."""
    reader = _Reader(source)
    width, height, flags = struct.unpack("<HHB", reader.take(13)[6:11])
    reader.take(_gif_colours(flags))
    cleaned = bytearray(reader.since(0))
    frames, right, bottom = 0, width, height
    while True:
        start = reader.at
        kind = reader.take(1)
        if kind == b";":  # the trailer
            break
        if kind == b",":
            frames += 1
            x, y, w, h, flags = struct.unpack("<HHHHB", reader.take(9))
            reader.take(_gif_colours(flags) + 1)  # and the size of the first LZW code
            right, bottom = max(right, x + w), max(bottom, y + h)
            if frames == 1:
                width, height = right, bottom
            kept = True
        elif kind == b"!":
            label = reader.take(1)
            kept = label == b"\xf9" or (label == b"\xff" and source[reader.at + 1 : reader.at + 12] in _GIF_KEPT)
        else:
            raise UnfitPicture(_DAMAGED)
        while size := reader.number("B"):
            reader.take(size)
        if kept:
            cleaned += reader.since(start)
    _refuse_bomb(right, bottom, frames)  # decoders enlarge the canvas for a frame that exceeds it
    cleaned += b";"
    return _Cleaned(cleaned, width, height, frames)


def _gif_colours(flags: int) -> int:
    """The size of the colour table that the flags of a screen or an image announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


_STRIPPERS = {"jpeg": _strip_jpeg, "png": _strip_png, "webp": _strip_webp, "gif": _strip_gif}


def _write_png(source: bytes, format: str, file: IO[bytes]) -> tuple[int, int]:
    """Writes a TIFF or BMP as PNG, upright, with its ICC profile and no more; returns its width and height."""
    with _any_failure_means_damage():
        if format == "tiff":
            _refuse_tiff_of_many_values(source)
        image = Image.open(io.BytesIO(source), formats=[format])
        _refuse_bomb(*image.size)
        if isinstance(image, TiffImageFile):
            _refuse_lossy_tiff(image)
            profile = image.info.get("icc_profile")
        else:
            _refuse_rare_bmp(image, source)
            profile = _bmp_profile(source)
        image.load()  # which turns a TIFF upright, too, by ImageOps.exif_transpose
    image.save(file, "PNG", icc_profile=profile if isinstance(profile, bytes) else None)
    return image.size


def _refuse_tiff_of_many_values(source: bytes) -> None:
    """TIFF 6.0, section 2: an entry is tag, type, count, value; of bytes and text there may be very many."""
    order = "<" if source.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", source, 4)
    (entries,) = struct.unpack_from(order + "H", source, start)
    for entry in range(entries):
        kind, count = struct.unpack_from(order + "HI", source, start + 4 + 12 * entry)
        if count > _MAX_TIFF_VALUES and kind not in (1, 2, 7):
            raise UnfitPicture(_DAMAGED)


def _refuse_lossy_tiff(image: TiffImageFile) -> None:
    """Pillow drops and rounds without a word what it cannot hold, and so would PNG (TIFF 6.0 has the tags)."""
    tags = image.tag_v2
    if image.is_animated or 330 in tags or tags.get(254, 0) & 1:  # SubIFDs, NewSubfileType: camera raw files
        raise UnfitPicture(_SEVERAL_PAGES)
    _refuse_bomb(tags.get(322, 0), tags.get(323, 0))  # TileWidth, TileLength: libtiff makes room for a whole tile
    bits, photometric, compression = tags.get(258, (1,)), tags.get(262), image.info["compression"]
    if not (
        image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")
        and (set(bits) <= {1, 2, 4, 8} or (bits == (16,) and photometric == 1))  # inverted 16-bit grey would stay so
        and set(tags.get(339, (1,))) == {1}  # SampleFormat: neither signed nor float
        and tags.get(338, ()) in ((), (2,))  # ExtraSamples: none but true alpha
        and (photometric != 6 or "jpeg" in compression)  # YCbCr, but JPEG is decoded as it is anywhere
        and all(colour % 256 in (0, colour // 256) for colour in tags.get(320, ()))  # ColorMap: 8 bits, as 16
    ):
        raise UnfitPicture(_NOT_FOR_PNG)
    planes = len(bits) if tags.get(284, 1) == 2 and compression == "raw" else 1
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, *_ in image.tile if box)
    if covered < image.width * image.height * planes:
        raise UnfitPicture(_DAMAGED)  # strips are missing, and Pillow would leave them black


def _refuse_rare_bmp(image: Image.Image, source: bytes) -> None:
    """Run lengths are decoded in Python, slowly; a grey palette that does not need all bits is decoded wrongly."""
    (bits,) = struct.unpack_from("<H", source, 24 if source[14] == 12 else 28)
    if (image.info["compression"] in (1, 2) and image.width * image.height > _MAX_RLE_PIXELS) or (
        bits != {"1": 1, "L": 8}.get(image.mode, bits)
    ):
        raise UnfitPicture(_RARE.format("BMP"))


def _bmp_profile(source: bytes) -> bytes | None:
    """The ICC profile in a BITMAPV5HEADER (wingdi.h: bV5CSType, bV5ProfileData, bV5ProfileSize)."""
    if source[14:18] != b"\x7c\0\0\0" or source[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", source, 126)
    return source[14 + offset : 14 + offset + size]
