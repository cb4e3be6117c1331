"""Makes pictures wait their turn to be decoded: small pictures do not wait for large pictures.

Decoding can take several hundred megabytes of memory and, for a large TIFF, half a minute. A process decodes at most
two pictures at a time: a large and a small picture.
"""

import threading

# The unit of cost is decoding a pixel of a PNG, about 0.1 µs. A photo from a phone has 12 megapixels.
SMALL = 16_000_000  # the largest cost of a small picture
CONVERSION = 16  # cost of a pixel that is decoded and compressed as PNG
REDUCED_JPEG = 1 / 8  # cost of a pixel of a baseline JPEG, decoded to an eighth of its width and height

_small = threading.Lock()
_large = threading.Lock()


def turn(cost: float) -> threading.Lock:
    """Return the lock to hold while a picture of this cost is decoded."""
    return _small if cost <= SMALL else _large
