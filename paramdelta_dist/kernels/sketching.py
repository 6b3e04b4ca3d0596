"""A few thousand numbers in place of a vector of billions, from which the distance of any two such vectors can be told.

Every element is added, or taken off, at one of `LENGTH` places: what two vectors differ in stays, on average and up to about
one part in a hundred, as long as it was. A row of LENGTH elements of a tensor goes to as many places, turned by an amount and
with a sign that are drawn for it, and with signs of its elements that are always the same. All of them depend on the tensor's
name and the row's number alone, so that sketches made by other workers, in other runs, of other merges can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from paramdelta_dist.kernels.measuring import Floats

LENGTH = 1 << 12
"""Numbers of a sketch: the error of a distance is about 1 / √(2 · LENGTH)."""
_ROWS = 8
"""Rows that are drawn for at once."""


def add_to_sketch(sketch: Floats, tensor: str, first: int, elements: Floats, scale: float) -> None:
    """Add `scale` times elements [n], the first of which is number `first` of the tensor, to sketch[LENGTH]."""
    last, ahead = first + len(elements), first % LENGTH
    signed = elements * np.resize(_signs(), ahead + len(elements))[ahead:]
    signed *= scale
    for row, turn, adds in _turns(tensor, first // LENGTH, -(-last // LENGTH)):
        begin, end = max(first, row * LENGTH), min(last, (row + 1) * LENGTH)
        part, place = signed[begin - first : end - first], (begin + turn) % LENGTH
        fits = min(end - begin, LENGTH - place)
        add = np.add if adds else np.subtract
        for at, some in ((slice(place, place + fits), part[:fits]), (slice(0, end - begin - fits), part[fits:])):
            add(sketch[at], some, out=sketch[at])


def _turns(tensor: str, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
    """Rows [first, last) of a tensor, by how much they are turned, and whether they are added or taken off."""
    for group in range(first // _ROWS, -(-last // _ROWS)):
        drawn = np.frombuffer(blake2b(group.to_bytes(8, "little"), key=_key(tensor), digest_size=2 * _ROWS).digest(), "<u2").tolist()
        for row, bits in enumerate(drawn, group * _ROWS):
            if first <= row < last:
                yield row, bits % LENGTH, bits >= 1 << 15


@lru_cache(maxsize=1 << 12)
def _key(tensor: str) -> bytes:
    return blake2b(tensor.encode(errors="backslashreplace"), digest_size=16).digest()


@lru_cache(maxsize=1)
def _signs() -> Floats:
    """[LENGTH]: ±1."""
    words = np.asarray(np.random.Philox(key=20).random_raw(LENGTH // 64), "<u8")
    return np.where(np.unpackbits(words.view(np.uint8)), 1.0, -1.0)
