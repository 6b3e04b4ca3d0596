"""A few thousand numbers in place of a vector of billions, from which the distance of any two such vectors can be told.

Every element is added, or taken off, at one of `LENGTH` places: what two vectors differ in stays, on average and up to about
one part in a hundred, as long as it was. A row of LENGTH elements of a tensor goes to as many places, turned by an amount and
with a sign that are drawn for it, and with signs of its elements that are always the same. All of them depend on the tensor's
name and the row's number alone, so that sketches made by other workers, in other runs, of other merges can be compared.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.kernels.measure import Floats
from paramdelta_dist.kernels.measure_numba import add_rows

LENGTH = 1 << 12
"""Numbers of a sketch: the error of a distance is about 1 / √(2 · LENGTH)."""
_ROWS = 8
"""Rows that are drawn for at once."""


def add_to_sketch(sketch: Floats, tensor: str, first: int, elements: Floats, scale: float) -> None:
    """Add `scale` times elements [n], the first of which is number `first` of the tensor, to sketch[LENGTH]."""
    rows = range(first // LENGTH, -(-(first + len(elements)) // LENGTH))
    turns, factors = _drawn(tensor, rows, scale)
    add_rows(sketch, elements, first % LENGTH, _signs(), turns, factors)


def _drawn(tensor: str, rows: range, scale: float) -> tuple[NDArray[np.int64], Floats]:
    """By how much rows of a tensor are turned, and `scale` with the sign of each."""
    key = _key(tensor)
    groups = range(rows.start // _ROWS, -(-rows.stop // _ROWS))
    bits = b"".join(blake2b(group.to_bytes(8, "little"), key=key, digest_size=2 * _ROWS).digest() for group in groups)
    ahead = rows.start - groups.start * _ROWS
    drawn = np.frombuffer(bits, "<u2")[ahead : ahead + len(rows)]
    return (drawn % LENGTH).astype(np.int64), np.where(drawn >> 15, scale, -scale)


@lru_cache(maxsize=1 << 12)
def _key(tensor: str) -> bytes:
    return blake2b(tensor.encode(errors="backslashreplace"), digest_size=16).digest()


@lru_cache(maxsize=1)
def _signs() -> Floats:
    """[LENGTH]: ±1."""
    words = np.asarray(np.random.Philox(key=20).random_raw(LENGTH // 64), "<u8")
    return np.where(np.unpackbits(words.view(np.uint8)), 1.0, -1.0)
