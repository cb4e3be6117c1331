"""Tells real ICC profiles, which a picture keeps, from other bytes in their place (ICC.1:2022, section 7.2)."""

HEADER_SIZE = 128
_MIN_SIZE = HEADER_SIZE + 4  # with the count of tags
MAX_SIZE = 255 * 65_519  # the largest profile that a JPEG can hold, about 16 MB
_SIGNATURE_AT = 36
_SIGNATURE = b"acsp"


def declared_size(header: bytes) -> int:
    """Return the size in bytes that a profile's header declares; 0 if it is not the header of a profile."""
    size = int.from_bytes(header[:4])
    signature = header[_SIGNATURE_AT : _SIGNATURE_AT + len(_SIGNATURE)]
    return size if signature == _SIGNATURE and _MIN_SIZE <= size <= MAX_SIZE else 0


def real_profile(content: bytes) -> bytes:
    """Return the profile, cut to its declared size; b"" if the bytes are not a complete profile.

    Text can stand in place of a profile, or after it. Without this check the text would survive the cleaning.
    """
    size = declared_size(content)
    return content[:size] if size <= len(content) else b""
