"""JPEG: keeps the data for decoding, the orientation and the colour profile.

ITU-T T.81 (annex B) defines the segments, T.871 JFIF, ICC.1 (B.4) the profile.
"""

import re
import struct
from typing import Final

from server.pictures.exif import EXIF_HEADER, read_orientation, upright_size, write_exif
from server.pictures.icc import real_profile
from server.pictures.parts import CleanedPicture, PartReader
from server.pictures.refusals import DAMAGED, RARE_KIND, UnfitPicture

# Markers: T.81, table B.1.
SOI: Final = 0xD8  # start of image
EOI: Final = 0xD9  # end of image
SOF0, SOF1, SOF2, SOF15 = 0xC0, 0xC1, 0xC2, 0xCF  # start of frame: baseline, extended, progressive, last
DHT: Final = 0xC4  # Huffman tables
SOS: Final = 0xDA  # start of scan
DQT: Final = 0xDB  # quantization tables
DNL: Final = 0xDC  # number of lines
DRI: Final = 0xDD  # restart interval
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF  # application segments
COM: Final = 0xFE  # comment

_FRAME_HEADERS = frozenset((SOF0, SOF1, SOF2))
_KEPT = _FRAME_HEADERS | {DHT, SOS, DQT, DNL, DRI}
_JFIF = b"JFIF\0"
_JFIF_SIZE = 14
_THUMBNAIL_AT = 12  # in JFIF: its width and height, then its pixels
_ADOBE = b"Adobe"
_ADOBE_SIZE = 12  # T.872, 6.5.3: name, version, two flags, colour transform
_ICC = b"ICC_PROFILE\0"
_ICC_CHUNK_AT = len(_ICC) + 2  # behind the number of the chunk and the count of chunks
_ICC_CHUNK_SIZE = 65_533 - _ICC_CHUNK_AT

_MAX_SCANS = 100  # each scan is a pass over the whole picture; encoders write about ten

# Entropy-coded data ends at an FF, unless a stuffed 00, a restart marker or a fill byte follows.
_END_OF_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")


def clean(source: bytes) -> CleanedPicture:
    """Return the JPEG without metadata. The bytes behind EOI are cut.

    There lie the further pictures of CIPA DC-007 (MPF) and the video of a motion photo.
    """
    return _JpegCleaner(source).clean()


class _JpegCleaner:
    def __init__(self, source: bytes) -> None:
        self._reader = PartReader(source)
        self._cleaned = bytearray(self._reader.read(2))  # SOI
        self._jfif = b""
        self._exif = b""
        self._adobe = b""
        self._icc_chunks: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []
        self._scans = 0

    def clean(self) -> CleanedPicture:
        start = self._reader.position
        while (marker := self._read_marker()) != EOI:
            payload = self._reader.read(self._reader.read_number(">H") - 2)
            if APP0 <= marker <= APP15 or marker == COM:
                self._read_application(marker, payload)
            elif marker in _KEPT:
                self._read_segment(marker, payload)
                self._cleaned += self._reader.since(start)
            else:  # lossless, hierarchical and arithmetic coding, which browsers do not show
                raise UnfitPicture(RARE_KIND.format("JPEG") if SOF0 <= marker <= SOF15 else DAMAGED)
            start = self._reader.position
        return self._finish()

    def _read_marker(self) -> int:
        if self._reader.read(1) != b"\xff":
            raise UnfitPicture(DAMAGED)
        while (marker := self._reader.read_number("B")) == 0xFF:
            pass  # T.81, B.1.1.2: any number of fill bytes may precede a marker
        return marker

    def _read_application(self, marker: int, payload: bytes) -> None:
        """Note what `_finish` writes anew. Decoders read no Adobe and ICC segments behind the first scan."""
        if marker == APP0 and payload.startswith(_JFIF):
            self._jfif = payload[:_THUMBNAIL_AT].ljust(_JFIF_SIZE, b"\0")
        elif marker == APP1 and payload.startswith(EXIF_HEADER):
            self._exif = self._exif or payload
        elif marker == APP14 and payload.startswith(_ADOBE) and len(payload) >= _ADOBE_SIZE and not self._scans:
            self._adobe = payload[:_ADOBE_SIZE]
        elif marker == APP2 and payload.startswith(_ICC) and not self._scans:
            self._icc_chunks.append(payload)

    def _read_segment(self, marker: int, payload: bytes) -> None:
        """Note the size in a frame header; move to the end of a scan."""
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", payload, 1)
            self._sizes.append((width, height))
        if marker == DNL and len(payload) != 2:
            raise UnfitPicture(DAMAGED)  # decoders ignore the segment, whatever text is in it
        if marker == SOS:
            self._scans += 1
            end = _END_OF_SCAN.search(self._reader.source, self._reader.position)
            if not end or self._scans > _MAX_SCANS:
                raise UnfitPicture(DAMAGED)
            self._reader.position = end.start()

    def _finish(self) -> CleanedPicture:
        [(width, height)] = self._sizes
        orientation = read_orientation(self._exif)
        exif = write_exif(orientation)
        applications = [(APP0, self._jfif), (APP1, exif and EXIF_HEADER + exif), (APP14, self._adobe)]
        applications += [(APP2, chunk) for chunk in _icc_chunks(_join_icc(self._icc_chunks))]
        self._cleaned[2:2] = b"".join(_segment(marker, payload) for marker, payload in applications if payload)
        self._cleaned += bytes((0xFF, EOI))
        return CleanedPicture(self._cleaned, *upright_size(width, height, orientation), frames=1)


def _join_icc(chunks: list[bytes]) -> bytes:
    """Return the profile; nothing if a chunk is missing, comes twice or is miscounted (ICC.1, B.4)."""
    numbered = {chunk[len(_ICC) : _ICC_CHUNK_AT]: chunk[_ICC_CHUNK_AT:] for chunk in chunks}
    expected = [bytes((number, len(chunks))) for number in range(1, len(chunks) + 1)] if len(chunks) < 256 else []
    return real_profile(b"".join(numbered[key] for key in expected)) if sorted(numbered) == expected else b""


def _icc_chunks(profile: bytes) -> list[bytes]:
    parts = [profile[start : start + _ICC_CHUNK_SIZE] for start in range(0, len(profile), _ICC_CHUNK_SIZE)]
    return [_ICC + bytes((number, len(parts))) + part for number, part in enumerate(parts, 1)]


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload
