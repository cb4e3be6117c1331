"""Cleans WebP, still or animated: keeps the chunks for pixels and colours (RFC 9649, section 2)."""

import struct
from collections.abc import Iterator

from PIL import WebPImagePlugin

from server.pictures.exif import UPRIGHT, read_orientation, upright_size, write_exif
from server.pictures.icc import real_profile
from server.pictures.parts import CleanedPicture, PartReader

# Without this import the first WebP would make Pillow load all its plugins.
assert WebPImagePlugin.SUPPORTED  # noqa: S101

_KEPT = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM"))
_SIZES = {b"VP8X": 10, b"ANIM": 6}  # decoders ignore surplus bytes, so text could hide there

_RIFF_HEADER_SIZE = 12  # "RIFF", the size of all that follows, "WEBP"
_FIRST_PAYLOAD = 20  # after the header of the first chunk
_ICC_FLAG = 0x20
_EXIF_FLAG = 0x08
_XMP_FLAG = 0x04


def clean(source: bytes) -> CleanedPicture:
    """Return the WebP without metadata. The simple format has a single chunk; bytes after it are cut."""
    reader = PartReader(source)
    reader.read(4)
    end = 8 + reader.read_number("<I")
    reader.read(4)
    format = source[_RIFF_HEADER_SIZE : _RIFF_HEADER_SIZE + 4]
    cleaned = bytearray(reader.since(0))
    exif, frames = b"", 0
    seen: set[bytes] = set()
    for kind, payload in _read_chunks(reader, end):
        if kind == b"EXIF":
            exif = payload
        elif kind == b"ANMF":
            frames += 1
            cleaned += _clean_frame(payload)
        else:
            cleaned += _clean_chunk(kind, payload, seen)
        if format != b"VP8X":
            break
    orientation = UPRIGHT
    if format == b"VP8X":
        orientation = read_orientation(exif)
        _replace_exif(cleaned, orientation)
        if b"ICCP" not in seen:
            cleaned[_FIRST_PAYLOAD] &= ~_ICC_FLAG
    struct.pack_into("<I", cleaned, 4, len(cleaned) - 8)
    width, height = upright_size(*_canvas_size(source, format), orientation)
    frames = max(frames, 1)
    return CleanedPicture(cleaned, width, height, frames, cost=width * height * frames)


def _canvas_size(source: bytes, format: bytes) -> tuple[int, int]:
    payload = source[_FIRST_PAYLOAD : _FIRST_PAYLOAD + 10]
    if format == b"VP8X":
        return 1 + int.from_bytes(payload[4:7], "little"), 1 + int.from_bytes(payload[7:10], "little")
    if format == b"VP8L":
        bits = int.from_bytes(payload[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", payload, 6)
    return width & 0x3FFF, height & 0x3FFF  # the upper two bits are a scale


def _clean_frame(payload: bytes) -> bytes:
    """Return a frame of an animation without unknown chunks."""
    reader = PartReader(payload)
    header = reader.read(16)
    seen: set[bytes] = set()
    chunks = b"".join(_clean_chunk(*chunk, seen) for chunk in _read_chunks(reader, len(payload)))
    return _chunk(b"ANMF", header + chunks)


def _clean_chunk(kind: bytes, payload: bytes, seen: set[bytes]) -> bytes:
    """Return the cleaned chunk and note it in `seen`; b"" for an unknown or repeated chunk, which decoders ignore."""
    if kind not in _KEPT or kind in seen:
        return b""
    if kind == b"ICCP" and not (payload := real_profile(payload)):
        return b""
    seen.add(kind)
    return _chunk(kind, payload[: _SIZES.get(kind)])


def _replace_exif(cleaned: bytearray, orientation: int) -> None:
    exif = write_exif(orientation)
    cleaned[_FIRST_PAYLOAD] &= ~(_EXIF_FLAG | _XMP_FLAG)
    if exif:
        cleaned[_FIRST_PAYLOAD] |= _EXIF_FLAG
        cleaned += _chunk(b"EXIF", exif)


def _read_chunks(reader: PartReader, end: int) -> Iterator[tuple[bytes, bytes]]:
    while reader.position < end:
        kind, payload = reader.read(4), reader.read(reader.read_number("<I"))
        reader.position += len(payload) % 2  # padding; some encoders leave it out at the end
        yield kind, payload


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
