"""Whether runs of bytes of two models are the same, without reading all of what is large."""

from __future__ import annotations

from typing import NamedTuple

from paramdelta_dist.storage import Identity, Store

SMALL = 256 << 10
"""Bytes of the longest run that is read whole."""
PLACES = 4
"""Pieces, spread all over a longer run, that are read of it; together they are as long as SMALL."""


class Stretch(NamedTuple):
    """Bytes [start, stop) of a file."""

    store: Store
    name: str
    identity: Identity
    start: int
    stop: int

    def read(self, begin: int, end: int) -> bytes:
        return bytes(self.store.read_range(self.name, self.start + begin, self.start + end, identity=self.identity))


def are_alike(one: Stretch, other: Stretch) -> bool:
    """Whether both hold the same bytes, wherever that is looked at. At most `SMALL` bytes of each are in memory at a time."""
    size = one.stop - one.start
    if other.stop - other.start != size:
        return False
    if size <= SMALL:
        return size == 0 or one.read(0, size) == other.read(0, size)
    piece = SMALL // PLACES
    places = [(size - piece) * number // (PLACES - 1) for number in range(PLACES)]
    return all(one.read(place, place + piece) == other.read(place, place + piece) for place in places)
