"""Where one model keeps the numbers of one tensor, and which bytes of its files some of the elements need."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import ITEMSIZES
from paramdelta_dist.kernels.encodings import Encoding, Space


class Read(NamedTuple):
    """Bytes [start, stop) of an input file, by its position in `Shard.inputs`."""

    file: int
    start: int
    stop: int


class Place(NamedTuple):
    """The first byte of an array, told from that of the codes: so many files further on in `Shard.inputs`, and so many bytes."""

    file: int
    start: int


class EncodedPlace(NamedTuple):
    """The arrays in which numbers lie that are not stored as one. Matrices that lie alike share one of these, as most do in models
    that have very many."""

    encoding: Encoding
    shape: tuple[int, ...]
    """Of the tensor that is stored so."""
    first: int
    """Element of it with which the source begins."""
    arrays: tuple[Place, ...]
    """Those that the encoding decodes, in its order; the first are the codes, and lie where the source begins."""


class Source(NamedTuple):
    """The place of the numbers of one tensor, or of a part of it, in one model."""

    file: int
    """Position in `Shard.inputs`."""
    start: int
    dtype: str
    """Of the numbers as they are stored; of encoded ones, what they are decoded to."""
    encoded: EncodedPlace | None = None
    """The arrays, where the numbers are not one that begins at `start`."""

    @property
    def is_plain(self) -> bool:
        """Whether the numbers are one array of them."""
        return self.encoded is None

    @property
    def space(self) -> Space:
        return Space.WEIGHT if self.encoded is None else self.encoded.encoding.space

    def at(self, element: int) -> Source:
        """The same from one of its elements on."""
        if self.encoded is None:
            return self._replace(start=self.start + element * ITEMSIZES[self.dtype])
        return self._replace(encoded=self.encoded._replace(first=self.encoded.first + element))

    @property
    def layout(self) -> Hashable:
        """All that its bytes depend on but for where they begin: equal ones are read in equally many requests."""
        return self.encoded or self.dtype

    def ranges(self, first: int, last: int) -> tuple[Read, ...]:
        """The bytes of each array that elements [first, last), which are not none, need."""
        if self.encoded is None:
            width = ITEMSIZES[self.dtype]
            return (Read(self.file, self.start + first * width, self.start + last * width),)
        encoding, shape, begin, arrays = self.encoded
        ranges = encoding.ranges(shape, begin + first, begin + last)
        return tuple(
            [
                Read(self.file + file, self.start + start + a, self.start + start + b)
                for (file, start), (a, b) in zip(arrays, ranges, strict=True)
            ]
        )

    def room(self, elements: int) -> int:
        """The most bytes that any `elements` which follow one another need."""
        if self.encoded is None:
            return elements * ITEMSIZES[self.dtype]
        return _room(self.encoded.encoding, self.encoded.shape, elements)

    def nbytes(self, elements: int) -> int:
        """Bytes of the first `elements`."""
        if self.encoded is None:
            return elements * ITEMSIZES[self.dtype]
        return _nbytes(self.encoded.encoding, self.encoded.shape, self.encoded.first, elements) if elements else 0

    def with_files(self, places: Sequence[int]) -> Source:
        """The same where the inputs lie in another order: `places` has the new position of each."""
        encoded, moved = self.encoded, places[self.file]
        if encoded is not None and any(file for file, _ in encoded.arrays):
            encoded = encoded._replace(arrays=tuple([Place(places[self.file + file] - moved, start) for file, start in encoded.arrays]))
        return self._replace(file=moved, encoded=encoded)


@lru_cache(1 << 12)  # large models have a few shapes, each of them many times
def _room(encoding: Encoding, shape: tuple[int, ...], elements: int) -> int:
    return encoding.room(shape, elements)


@lru_cache(1 << 12)
def _nbytes(encoding: Encoding, shape: tuple[int, ...], first: int, elements: int) -> int:
    return sum(stop - start for start, stop in encoding.ranges(shape, first, first + elements))


class Stack(NamedTuple):
    """The sources of a tensor that a model keeps in pieces, one behind the other in row-major order."""

    pieces: tuple[Source, ...]
    ends: tuple[int, ...]
    """For each piece the elements of it and of those before it."""

    @property
    def is_plain(self) -> bool:
        """Whether the numbers are one array of them: they are several."""
        return False

    @property
    def dtype(self) -> str:
        """The dtype that all numbers are brought to: the widest of the pieces."""
        return max((piece.dtype for piece in self.pieces), key=ITEMSIZES.__getitem__)

    @property
    def space(self) -> Space:
        return self.pieces[0].space

    @property
    def layout(self) -> Hashable:
        """All that its bytes depend on; no two are read alike."""
        return self

    def within(self, first: int, last: int) -> Iterator[tuple[Source, int, int]]:
        """The pieces that hold elements [first, last), each from the first of these on that it holds, and which of them these are."""
        at = first
        while at < last:
            piece, end = self.piece_at(at)
            yield piece, at, min(end, last)
            at = end

    def ranges(self, first: int, last: int) -> tuple[Read, ...]:
        """The bytes of each array, piece by piece, that elements [first, last) need."""
        return tuple([read for piece, begin, end in self.within(first, last) for read in piece.ranges(0, end - begin)])

    def room(self, elements: int) -> int:
        """The most bytes that any `elements` which follow one another need."""
        sizes = [end - begin for begin, end in zip((0, *self.ends), self.ends, strict=False)]
        touched = min(len(sizes), elements // max(1, min(sizes)) + 2)
        return touched * max(piece.room(min(size, elements)) for piece, size in zip(self.pieces, sizes, strict=True))

    def nbytes(self, elements: int) -> int:
        """Bytes of the first `elements`."""
        return sum(read.stop - read.start for read in self.ranges(0, elements))

    def piece_at(self, element: int) -> tuple[Source, int]:
        """The source that begins with an element, and the element with which the next one begins."""
        number = bisect_right(self.ends, element)
        begin = self.ends[number - 1] if number else 0
        return self.pieces[number].at(element - begin), self.ends[number]

    def with_files(self, places: Sequence[int]) -> Stack:
        """The same where the inputs lie in another order: `places` has the new position of each."""
        return self._replace(pieces=tuple([piece.with_files(places) for piece in self.pieces]))


def sources_of(sources: Sequence[Source | Stack | None]) -> Iterator[Source]:
    """The single ones."""
    for source in sources:
        if isinstance(source, Stack):
            yield from source.pieces
        elif source is not None:
            yield source
