"""Cleans JPEG: keeps the data for decoding, the orientation and the colour profile, and refuses incomplete data.

ITU-T T.81 (annex B) defines the segments, T.871 JFIF, ICC.1 (B.4) the profile.
"""

import os
import re
import struct
from typing import IO, Final

from server.pictures.exif import EXIF_HEADER, read_orientation, upright_size, write_exif
from server.pictures.icc import real_profile
from server.pictures.parts import CleanedPicture, PartReader
from server.pictures.refusals import DAMAGED, RARE_KIND, TOO_MANY_SCANS, UnfitPicture, refuse_bomb
from server.pictures.turns import REDUCED_JPEG

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
_JFIF_VERSION = b"\1"  # libjpeg warns at any other
_JFIF_SIZE = 14
_THUMBNAIL_AT = 12  # in JFIF: its width and height, then its pixels
_ADOBE = b"Adobe"
_ADOBE_SIZE = 12  # T.872, 6.5.3: name, version, two flags, colour transform
_ICC = b"ICC_PROFILE\0"
_ICC_CHUNK_AT = len(_ICC) + 2  # after the number of the chunk and the count of chunks
_ICC_CHUNK_SIZE = 65_533 - _ICC_CHUNK_AT

_BLOCK = 64  # coefficients
_NOT_SENT = 0xFF  # greater than every bit position in a scan header
_SEQUENTIAL = bytes((0, _BLOCK - 1, 0))  # Ss, Se, Ah and Al of a sequential scan: all coefficients, all bits

_PADDING = re.compile(rf"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x{EOI:02x}")
_MAX_PADDING = 16  # bytes; some cameras pad the data to whole words
_FILLER = re.compile(rb"\0+|(?:\xff\0)+")  # bits of 0, or bits of 1 with a stuffed 00 behind each FF

# Each scan is a pass over the whole picture, which takes at least 0.7 ns a pixel. Encoders write about ten scans.
_MAX_SCANS = 100
_MAX_SCANNED_PIXELS = 1_000_000_000  # scans times pixels: 20 scans of 50 megapixels

# Entropy-coded data ends at an FF, unless a stuffed 00, a restart marker or a fill byte follows.
_END_OF_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")


def clean(source: bytes, picture_pixels: int = 0) -> CleanedPicture:
    """Return the JPEG without metadata. The bytes after EOI are cut.

    Further pictures (CIPA DC-007, MPF) and the video of a motion photo stand after EOI. If the JPEG is a strip or tile
    of a TIFF, `picture_pixels` is the size of the whole picture: it limits the number of scans.
    """
    return _JpegCleaner(source, picture_pixels).clean()


def decode(file: IO[bytes]) -> None:
    """Decode a cleaned JPEG and cut its padding before EOI. Raises if data is missing."""
    content = file.read()
    if padding := count_padding(content):
        file.truncate(len(content) - 2 - padding)
        file.seek(0, os.SEEK_END)
        file.write(bytes((0xFF, EOI)))


def count_padding(content: bytes) -> int:
    """Return how many bytes of padding precede EOI in a cleaned JPEG.

    Decodes the JPEG. Raises ValueError for missing, surplus or wrong data: libjpeg only warns, and Pillow hides the
    warnings and shows grey. Raises UnfitPicture for a rare kind.
    """
    try:
        _decode_strictly(content)
    except ValueError as error:
        found = _PADDING.search(str(error))
        padding = int(found[1]) if found else 0
        if padding > _MAX_PADDING or not _FILLER.fullmatch(content[-2 - padding : -2]):
            raise
        _decode_strictly(content[: -2 - padding] + content[-2:])
        return padding
    return 0


def _decode_strictly(content: bytes) -> None:
    """Decode to an eighth of width and height: reads all data, makes few pixels. Raises ValueError at any warning."""
    import simplejpeg  # at the first JPEG, since it loads numpy: 0.15 s and 14 MB

    colours = "CMYK" if _count_components(content) == 4 else "GRAY"
    try:
        simplejpeg.decode_jpeg(content, colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        if "subsampling" in str(error):  # TurboJPEG does not know 4:1:0, for example
            raise UnfitPicture(RARE_KIND.format("JPEG")) from error
        raise


def _count_components(content: bytes) -> int:
    """Return the number of components in the frame header of a cleaned JPEG."""
    position = 2
    while (marker := content[position + 1]) not in _FRAME_HEADERS:
        if marker == SOS:
            raise UnfitPicture(DAMAGED)
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
    return content[position + 9]


class _JpegCleaner:
    def __init__(self, source: bytes, picture_pixels: int) -> None:
        self._reader = PartReader(source)
        self._picture_pixels = picture_pixels
        self._cleaned = bytearray(self._reader.read(2))  # SOI
        self._jfif = b""
        self._exif = b""
        self._adobe = b""
        self._icc_chunks: list[bytes] = []
        self._frame: _Frame | None = None
        self._scans = 0

    def clean(self) -> CleanedPicture:
        while (marker := self._read_marker()) != EOI:
            payload = self._reader.read(self._reader.read_number(">H") - 2)
            if APP0 <= marker <= APP15 or marker == COM:
                self._read_application(marker, payload)
            elif marker in _KEPT:
                self._cleaned += self._read_segment(marker, payload)
            else:  # browsers do not show lossless, hierarchical and arithmetic coding
                raise UnfitPicture(RARE_KIND.format("JPEG") if SOF0 <= marker <= SOF15 else DAMAGED)
        return self._finish()

    def _read_marker(self) -> int:
        if self._reader.read(1) != b"\xff":
            raise UnfitPicture(DAMAGED)
        while (marker := self._reader.read_number("B")) == 0xFF:
            pass  # T.81, B.1.1.2: any number of fill bytes may precede a marker
        return marker

    def _read_application(self, marker: int, payload: bytes) -> None:
        """Note the segment if `_finish` writes it. Decoders ignore Adobe and ICC segments after the first scan."""
        if marker == APP0 and payload.startswith(_JFIF):
            behind_version = len(_JFIF) + 1
            self._jfif = (_JFIF + _JFIF_VERSION + payload[behind_version:_THUMBNAIL_AT]).ljust(_JFIF_SIZE, b"\0")
        elif marker == APP1 and payload.startswith(EXIF_HEADER):
            self._exif = self._exif or payload
        elif marker == APP14 and payload.startswith(_ADOBE) and len(payload) >= _ADOBE_SIZE and not self._scans:
            self._adobe = payload[:_ADOBE_SIZE]
        elif marker == APP2 and payload.startswith(_ICC) and not self._scans:
            self._icc_chunks.append(payload)

    def _read_segment(self, marker: int, payload: bytes) -> bytes:
        """Return the cleaned segment. With a scan header comes the entropy-coded data of the scan."""
        if marker in _FRAME_HEADERS:
            if self._frame:
                raise UnfitPicture(DAMAGED)
            self._frame = _Frame(payload, progressive=marker == SOF2)
            refuse_bomb(self._frame.width, self._frame.height)
        if marker == DNL and len(payload) != 2:
            raise UnfitPicture(DAMAGED)  # decoders ignore the segment, so text could hide in it
        if marker != SOS:
            return _segment(marker, payload)
        self._count_scan()
        start = self._reader.position
        end = _END_OF_SCAN.search(self._reader.source, start)
        if not end or not self._frame:
            raise UnfitPicture(DAMAGED)
        self._reader.position = end.start()
        return _segment(SOS, self._frame.read_scan(payload)) + self._reader.since(start)

    def _count_scan(self) -> None:
        self._scans += 1
        pixels = max(self._picture_pixels, self._frame.width * self._frame.height if self._frame else 0)
        if self._scans > _MAX_SCANS or self._scans * pixels > _MAX_SCANNED_PIXELS:
            raise UnfitPicture(TOO_MANY_SCANS)

    def _finish(self) -> CleanedPicture:
        if not self._frame or not self._frame.is_complete():
            raise UnfitPicture(DAMAGED)
        orientation = read_orientation(self._exif)
        exif = write_exif(orientation)
        applications = [(APP0, self._jfif), (APP1, exif and EXIF_HEADER + exif), (APP14, self._adobe)]
        applications += [(APP2, chunk) for chunk in _icc_chunks(_join_icc(self._icc_chunks))]
        self._cleaned[2:2] = b"".join(_segment(marker, payload) for marker, payload in applications if payload)
        self._cleaned += bytes((0xFF, EOI))
        width, height = upright_size(self._frame.width, self._frame.height, orientation)
        cost = width * height * (1 if self._frame.progressive else REDUCED_JPEG)
        return CleanedPicture(self._cleaned, width, height, frames=1, cost=cost)


class _Frame:
    """A frame header, and the coefficients that its scans have sent so far (T.81, B.2.2 and G.1.1.1).

    They reveal a progressive JPEG that was cut between two scans: its form is right, but bits or coefficients lack.
    """

    def __init__(self, header: bytes, *, progressive: bool) -> None:
        self.height, self.width, components = struct.unpack_from(">HHB", header, 1)
        self.progressive = progressive
        self._identifiers = header[6 : 6 + 3 * components : 3]
        # The position of the lowest bit sent, by component and coefficient.
        self._lowest_bits = [[_NOT_SENT] * _BLOCK for _ in range(components)]

    def read_scan(self, header: bytes) -> bytes:
        """Note the coefficients that a scan sends; return its header, corrected if the JPEG is sequential."""
        selectors = header[1 : 1 + 2 * header[0] : 2]
        first, last, bits = header[-3:] if self.progressive else _SEQUENTIAL
        components: set[int] = set()
        for selector in selectors:  # some encoders give several components the same identifier
            same = {index for index, identifier in enumerate(self._identifiers) if identifier == selector}
            components.add(min(same - components))
        for component in components:
            self._lowest_bits[component][first : last + 1] = [bits & 0x0F] * (last + 1 - first)
        # Decoders ignore the last three values in a sequential JPEG, so text could hide there.
        return header[:-3] + bytes((first, last, bits))

    def is_complete(self) -> bool:
        """Return whether every bit of every coefficient has arrived."""
        return all(lowest_bits == [0] * _BLOCK for lowest_bits in self._lowest_bits)


def _join_icc(chunks: list[bytes]) -> bytes:
    """Return the profile; b"" if a chunk is missing, repeated or miscounted (ICC.1, B.4)."""
    numbered = {chunk[len(_ICC) : _ICC_CHUNK_AT]: chunk[_ICC_CHUNK_AT:] for chunk in chunks}
    expected = [bytes((number, len(chunks))) for number in range(1, len(chunks) + 1)] if len(chunks) < 256 else []
    return real_profile(b"".join(numbered[key] for key in expected)) if sorted(numbered) == expected else b""


def _icc_chunks(profile: bytes) -> list[bytes]:
    parts = [profile[start : start + _ICC_CHUNK_SIZE] for start in range(0, len(profile), _ICC_CHUNK_SIZE)]
    return [_ICC + bytes((number, len(parts))) + part for number, part in enumerate(parts, 1)]


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload
