"""ICC profiles: a picture keeps its profile if it is real (ICC.1:2022, section 7.2)."""

HEADER_SIZE = 128
_MIN_SIZE = HEADER_SIZE + 4  # with the count of tags
MAX_SIZE = 255 * 65_519  # the largest profile that a JPEG can hold, about 16 MB
_SIGNATURE_AT = 36
_SIGNATURE = b"acsp"


def declared_size(header: bytes) -> int:
    """Return the size in bytes that a profile's header declares; 0 if the bytes begin no profile."""
    size = int.from_bytes(header[:4])
    signature = header[_SIGNATURE_AT : _SIGNATURE_AT + len(_SIGNATURE)]
    return size if signature == _SIGNATURE and _MIN_SIZE <= size <= MAX_SIZE else 0


def real_profile(content: bytes) -> bytes:
    """Return the profile, cut to its declared size; nothing if the bytes are no whole profile.

    Text can pretend to be a profile, or follow it. Without this check such text would survive the cleaning.
    """
    size = declared_size(content)
    return content[:size] if size <= len(content) else b""
