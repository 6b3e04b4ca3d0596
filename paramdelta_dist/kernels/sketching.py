"""A few thousand numbers in place of a vector of billions, from which the distance of any two such vectors can be told.

Every element is added, with a sign drawn for it alone, to one of `LENGTH` numbers: what two vectors differ in stays, on
average and up to about one part in a hundred, as long as it was. Signs depend on the tensor's name and the element's place
alone, so that sketches made by different workers, in different runs, of different merges can be compared.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from paramdelta_dist.kernels.measuring import Floats

LENGTH = 1 << 12
"""Numbers of a sketch: the error of a distance is about 1 / √(2 · LENGTH)."""
_WORD = 64
"""Signs in a random word."""


def add_to_sketch(sketch: Floats, tensor: str, first: int, elements: Floats, scale: float) -> None:
    """Add `scale` times elements [n], the first of which is number `first` of the tensor, to sketch[LENGTH]."""
    ahead = first % LENGTH
    words = -(-(ahead + len(elements)) // _WORD)
    random = np.random.Philox(key=_key(tensor), counter=first // LENGTH * LENGTH).random_raw(words)
    signs = np.unpackbits(np.asarray(random).view(np.uint8), count=ahead + len(elements))[ahead:]
    rows = -(-(ahead + len(elements)) // LENGTH)
    signed = np.zeros(rows * LENGTH)
    np.multiply(elements, np.where(signs, scale, -scale), out=signed[ahead : ahead + len(elements)])
    sketch += signed.reshape(rows, LENGTH).sum(axis=0)


@lru_cache(maxsize=1 << 12)
def _key(tensor: str) -> int:
    return int.from_bytes(blake2b(tensor.encode(errors="backslashreplace"), digest_size=16).digest(), "little")
