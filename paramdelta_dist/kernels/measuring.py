"""What a chunk of several models says about their differences: sums in float64, counts, and how magnitudes are spread.

A vector is the difference of two models, element by element. All sums of a chunk are made in one thread, in one order and in
scratch memory of its own, so that they depend on the chunk's values alone; who adds chunks does so in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray

from paramdelta_dist.kernels.merging import view

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS = 64
LOWEST = -48
"""Bin b counts magnitudes in [2^(LOWEST+b), 2^(LOWEST+b+1)); the first and the last hold what is beyond them, zeros apart."""
_EXPONENT_OF_ONE = 1023


@dataclass(frozen=True)
class Vectors:
    """What is measured of a list of models: differences (minuend, subtrahend) by their positions in it.

    The first `deltas` vectors are deltas, of which everything is measured; of the others only dot products are.
    """

    models: int
    pairs: tuple[tuple[int, int], ...]
    deltas: int
    bases: tuple[int, ...]
    """Models whose own norm is measured."""
    full: bool = True
    """Whether dot products are of any two vectors and magnitudes are spread over bins; else every vector is only multiplied with
    itself, and of deltas nothing is known besides but their sums, the greatest and the zeros."""

    @property
    def dots(self) -> list[tuple[int, int]]:
        """The vectors of each dot product, in the order of its sum."""
        if self.full:
            return list(combinations_with_replacement(range(len(self.pairs)), 2))
        return [(vector, vector) for vector in range(len(self.pairs))]

    @property
    def couples(self) -> list[tuple[int, int]]:
        """Every two deltas."""
        return list(combinations(range(self.deltas), 2))

    @property
    def sums(self) -> int:
        """Length of `Measured.sums`: dot products, squares of each base, then Σδ and Σ|δ| of each delta."""
        return len(self.dots) + len(self.bases) + 2 * self.deltas


@dataclass
class Measured:
    """What is known of some elements. Sums are float64, counts int64."""

    sums: Floats
    """[Vectors.sums]"""
    peaks: Floats
    """[deltas]: max |δ|."""
    zeros: Counts
    """[deltas]: elements that are exactly zero."""
    histograms: Counts
    """[deltas, BINS]: elements by the power of two of |δ|."""
    signs: Counts
    """[couples, 2]: elements in which both deltas have the same sign, and in which neither is zero."""

    def add(self, place: int, other: Measured) -> None:
        """Count `other`, of one tensor, to the tensor at `place`. Its sums come behind those that are there."""
        self.sums[place] += other.sums
        np.maximum(self.peaks[place], other.peaks, out=self.peaks[place])
        self.zeros[place] += other.zeros
        self.histograms[place] += other.histograms
        self.signs[place] += other.signs

    @classmethod
    def nothing(cls, vectors: Vectors, shape: tuple[int, ...] = ()) -> Measured:
        """Of no elements; with `shape`, of as many tensors, along leading axes."""
        deltas = vectors.deltas
        return cls(
            np.zeros((*shape, vectors.sums)),
            np.zeros((*shape, deltas)),
            np.zeros((*shape, deltas), np.int64),
            np.zeros((*shape, deltas, BINS), np.int64),
            np.zeros((*shape, len(vectors.couples), 2), np.int64),
        )


def values(buffer: memoryview, dtype: str) -> torch.Tensor:
    """The elements in `buffer`, of the torch dtype of that name."""
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return view(buffer, found)


@dataclass(frozen=True)
class _Scratch:
    """Memory for chunks of one length. Every array is [n]; those that torch and numpy both use are the same memory."""

    wide: dict[int, torch.Tensor]
    """Models that something is subtracted from or that are bases, in float64."""
    differences: list[torch.Tensor]
    magnitude: torch.Tensor
    values: NDArray[np.float64]
    """The magnitude,"""
    bits: Counts
    """and its bits."""
    exponents: Counts
    signed: list[NDArray[np.float64]]
    """The deltas among the differences."""
    sign: NDArray[np.bool_]

    def front(self, n: int) -> _Scratch:
        """The first n elements of all."""
        return _Scratch(
            {model: block[:n] for model, block in self.wide.items()},
            [block[:n] for block in self.differences],
            self.magnitude[:n],
            self.values[:n],
            self.bits[:n],
            self.exponents[:n],
            [block[:n] for block in self.signed],
            self.sign[:n],
        )


class Measurer:
    """Measures chunks of at most `size` elements. Keeps its scratch between them; one a thread."""

    def __init__(self, vectors: Vectors, size: int) -> None:
        self._vectors, self._size = vectors, size
        self._dots, self._couples = vectors.dots, vectors.couples
        subtrahends = sorted({model for _, model in vectors.pairs} | set(vectors.bases))
        differences = [torch.empty(size, dtype=torch.float64) for _ in vectors.pairs]
        magnitude = torch.empty(size, dtype=torch.float64)
        self._scratch = _Scratch(
            {model: torch.empty(size, dtype=torch.float64) for model in subtrahends},
            differences,
            magnitude,
            magnitude.numpy(),
            magnitude.numpy().view(np.int64),
            np.empty(size, np.int64),
            [difference.numpy() for difference in differences[: vectors.deltas]],
            np.empty(size, np.bool_),
        )
        self._signs_of = np.zeros((2, vectors.deltas, -(-size // 64)), np.uint64)
        """A bit for each element: whether each delta is above, and whether it is below zero."""

    def measure(self, models: Mapping[int, torch.Tensor], sums: Floats, into: Measured) -> None:
        """Measure models[·][n]: the sums replace `sums`, everything else, whose order does not matter, is added to `into`."""
        vectors, n = self._vectors, next(iter(models.values())).numel()
        scratch = self._scratch if n == self._size else self._scratch.front(n)
        for model, block in scratch.wide.items():
            block.copy_(models[model])
        for (minuend, subtrahend), difference in zip(vectors.pairs, scratch.differences, strict=True):
            start = scratch.wide[minuend] if minuend in scratch.wide else difference.copy_(models[minuend])
            torch.sub(start, scratch.wide[subtrahend], out=difference)
        found = [torch.dot(scratch.differences[one], scratch.differences[other]).item() for one, other in self._dots]
        found += [torch.dot(scratch.wide[model], scratch.wide[model]).item() for model in vectors.bases]
        for delta in range(vectors.deltas):
            found += [scratch.differences[delta].sum().item(), self._magnitudes(scratch, delta, into)]
        sums[:] = found
        if vectors.deltas > 1:
            self._signs(scratch, into)

    def difference(self, delta: int, n: int) -> NDArray[np.float64]:
        """Elements [n] of a delta in the chunk of n that was measured last; overwritten with the next."""
        return self._scratch.signed[delta][:n]

    def _magnitudes(self, scratch: _Scratch, delta: int, into: Measured) -> float:
        """Σ|δ|; the greatest, the zeros and the histogram go into `into`."""
        torch.abs(scratch.differences[delta], out=scratch.magnitude)
        into.peaks[delta] = np.maximum(into.peaks[delta], scratch.values.max())
        if not self._vectors.full:
            into.zeros[delta] += np.count_nonzero(np.equal(scratch.values, 0, out=scratch.sign))
            return scratch.magnitude.sum().item()
        np.right_shift(scratch.bits, 52, out=scratch.exponents)
        found = np.bincount(scratch.exponents, minlength=2 * _EXPONENT_OF_ONE + 2)
        zeros = np.count_nonzero(np.equal(scratch.values, 0, out=scratch.sign)) if found[0] else 0
        first, last = _EXPONENT_OF_ONE + LOWEST, _EXPONENT_OF_ONE + LOWEST + BINS - 1
        histogram = into.histograms[delta]
        histogram[0] += found[: first + 1].sum() - zeros
        histogram[1:-1] += found[first + 1 : last]
        histogram[-1] += found[last:].sum()
        into.zeros[delta] += zeros
        return scratch.magnitude.sum().item()

    def _signs(self, scratch: _Scratch, into: Measured) -> None:
        signs = self._signs_of
        if len(scratch.sign) < self._size:
            signs[:] = 0
        for delta, values in enumerate(scratch.signed):
            for place, compare in enumerate((np.greater, np.less)):
                packed = np.packbits(compare(values, 0, out=scratch.sign))
                signs[place, delta].view(np.uint8)[: len(packed)] = packed
        positive, negative = signs
        changed = positive | negative
        for place, (a, b) in enumerate(self._couples):
            same = _ones(positive[a] & positive[b]) + _ones(negative[a] & negative[b])
            into.signs[place] += same, _ones(changed[a] & changed[b])


_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def _ones(bits: NDArray[np.uint64]) -> int:
    """How many bits are set."""
    count = getattr(np, "bitwise_count", None)  # of numpy 2
    return int((count(bits) if count else _ONES[bits.view(np.uint8)]).sum(dtype=np.int64))
