"""Reads and writes the orientation, the only entry of Exif data that we keep (CIPA DC-008)."""

import struct

EXIF_HEADER = b"Exif\0\0"  # precedes the data in a JPEG, sometimes in other formats too
UPRIGHT = 1
_ORIENTATION = 0x0112
_SHORT = 3  # the type of a number of 16 bits


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8. It is 1 (upright) if there is none, or if the Exif data is broken.

    The orientation is the SHORT 0x0112 in the first directory of a TIFF.
    """
    exif = exif.removeprefix(EXIF_HEADER)
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(entries):
            tag, kind, value = struct.unpack_from(order + "HH4xH", exif, start + 2 + 12 * entry)
            if (tag, kind) == (_ORIENTATION, _SHORT) and 2 <= value <= 8:
                return int(value)
    except struct.error:
        pass  # Exif data is often broken; the picture is whole without it
    return UPRIGHT


def write_exif(orientation: int) -> bytes:
    """Return Exif data with nothing but the orientation; b"" for an upright picture."""
    if orientation == UPRIGHT:
        return b""
    directory = struct.pack(">HHHIHHI", 1, _ORIENTATION, _SHORT, 1, orientation, 0, 0)
    return struct.pack(">4sI", b"MM\0*", 8) + directory


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Return width and height as a browser shows the picture: it turns orientations 5 to 8 by a quarter."""
    return (height, width) if orientation >= 5 else (width, height)
