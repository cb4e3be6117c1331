"""Turns at the decoder: small pictures pass large ones.

Decoding can take several hundred megabytes of memory and, for a large TIFF, half a minute. A process decodes one
large picture at a time, and one small picture beside it.
"""

import threading

# Costs are in pixels of a PNG, about 0.1 µs each. A photo from a phone has 12 megapixels.
SMALL = 16_000_000
CONVERSION = 16  # cost of a pixel that is decoded and compressed anew, as PNG
REDUCED_JPEG = 1 / 8  # cost of a pixel of a baseline JPEG, decoded to an eighth of its width and height

_small = threading.Lock()
_large = threading.Lock()


def turn(cost: float) -> threading.Lock:
    """Return the lock to hold while a picture of this cost is decoded."""
    return _small if cost <= SMALL else _large
