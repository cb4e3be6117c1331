"""JPEG: keeps the data for decoding, the orientation and the colour profile.

ITU-T T.81 (annex B) defines the segments, T.871 JFIF, ICC.1 (B.4) the profile.
"""

import re
import struct
from typing import Final

from server.pictures.exif import EXIF_HEADER, read_orientation, upright_size, write_exif
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
_KEPT_APPLICATIONS = {APP2: b"ICC_PROFILE\0", APP14: b"Adobe"}
_JFIF = b"JFIF\0"

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
        self._sizes: list[tuple[int, int]] = []
        self._scans = 0

    def clean(self) -> CleanedPicture:
        start = self._reader.position
        while (marker := self._read_marker()) != EOI:
            payload = self._reader.read(self._reader.read_number(">H") - 2)
            if APP0 <= marker <= APP15 or marker == COM:
                keep = self._read_application(marker, payload)
            elif marker in _KEPT:
                keep = True
                self._read_segment(marker, payload)
            else:  # lossless, hierarchical and arithmetic coding, which browsers do not show
                raise UnfitPicture(RARE_KIND.format("JPEG") if SOF0 <= marker <= SOF15 else DAMAGED)
            if keep:
                self._cleaned += self._reader.since(start)
            start = self._reader.position
        return self._finish()

    def _read_marker(self) -> int:
        if self._reader.read(1) != b"\xff":
            raise UnfitPicture(DAMAGED)
        while (marker := self._reader.read_number("B")) == 0xFF:
            pass  # T.81, B.1.1.2: any number of fill bytes may precede a marker
        return marker

    def _read_application(self, marker: int, payload: bytes) -> bool:
        """Note JFIF and the first Exif; return whether the segment is kept as it is."""
        if marker == APP0 and payload.startswith(_JFIF):
            thumbnail_at = 12
            self._jfif = _segment(APP0, payload[:thumbnail_at].ljust(14, b"\0"))
            return False
        if marker == APP1 and payload.startswith(EXIF_HEADER):
            self._exif = self._exif or payload
            return False
        return payload.startswith(_KEPT_APPLICATIONS.get(marker, ()))

    def _read_segment(self, marker: int, payload: bytes) -> None:
        """Note the size in a frame header; move to the end of a scan."""
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", payload, 1)
            self._sizes.append((width, height))
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
        self._cleaned[2:2] = self._jfif + (_segment(APP1, EXIF_HEADER + exif) if exif else b"")
        self._cleaned += bytes((0xFF, EOI))
        return CleanedPicture(self._cleaned, *upright_size(width, height, orientation), frames=1)


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload
