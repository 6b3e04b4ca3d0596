"""What a chunk of several models says about their differences: sums in float64, counts, and how magnitudes are spread.

A vector is the difference of two models, element by element. All sums of a chunk are made in one thread, in one order and in
scratch memory of its own, so that they depend on the chunk's values alone; who adds chunks does so in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @property
    def dots(self) -> list[tuple[int, int]]:
        """The vectors of each dot product, in the order of its sum."""
        return list(combinations_with_replacement(range(len(self.pairs)), 2))

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


class Measurer:
    """Measures chunks of at most `size` elements. Keeps its scratch between them; one a thread."""

    def __init__(self, vectors: Vectors, size: int) -> None:
        self._vectors = vectors
        subtrahends = sorted({model for _, model in vectors.pairs} | set(vectors.bases))
        self._wide = {model: torch.empty(size, dtype=torch.float64) for model in subtrahends}
        self._differences = [torch.empty(size, dtype=torch.float64) for _ in vectors.pairs]
        self._magnitude = torch.empty(size, dtype=torch.float64)
        self._exponents = np.empty(size, np.int64)
        self._positive, self._negative = (np.empty((vectors.deltas, size), np.bool_) for _ in range(2))
        self._both = np.empty((2, size), np.bool_)

    def measure(self, models: Mapping[int, torch.Tensor], sums: Floats, into: Measured) -> None:
        """Measure models[·][n]: the sums replace `sums`, everything else, whose order does not matter, is added to `into`."""
        vectors, n = self._vectors, next(iter(models.values())).numel()
        wide = {model: block[:n].copy_(models[model]) for model, block in self._wide.items()}
        differences = []
        for (minuend, subtrahend), block in zip(vectors.pairs, self._differences, strict=True):
            difference = wide[minuend] if minuend in wide else block[:n].copy_(models[minuend])
            differences.append(torch.sub(difference, wide[subtrahend], out=block[:n]))
        place = 0
        for one, other in vectors.dots:
            sums[place] = torch.dot(differences[one], differences[other]).item()
            place += 1
        for model in vectors.bases:
            sums[place] = torch.dot(wide[model], wide[model]).item()
            place += 1
        for delta in range(vectors.deltas):
            sums[place] = differences[delta].sum().item()
            sums[place + 1] = self._magnitudes(differences[delta], delta, into)
            place += 2
        if vectors.deltas > 1:
            self._signs([difference.numpy() for difference in differences[: vectors.deltas]], into)

    def _magnitudes(self, difference: torch.Tensor, delta: int, into: Measured) -> float:
        """Σ|δ|; the greatest, the zeros and the histogram go into `into`."""
        n = difference.numel()
        magnitude = torch.abs(difference, out=self._magnitude[:n])
        values = magnitude.numpy()
        into.peaks[delta] = np.maximum(into.peaks[delta], values.max())
        exponents = np.right_shift(values.view(np.int64), 52, out=self._exponents[:n])
        found = np.bincount(exponents, minlength=2 * _EXPONENT_OF_ONE + 2)
        zeros = n - np.count_nonzero(values) if found[0] else 0
        first, last = _EXPONENT_OF_ONE + LOWEST, _EXPONENT_OF_ONE + LOWEST + BINS - 1
        histogram = into.histograms[delta]
        histogram[0] += found[: first + 1].sum() - zeros
        histogram[1:-1] += found[first + 1 : last]
        histogram[-1] += found[last:].sum()
        into.zeros[delta] += zeros
        return magnitude.sum().item()

    def _signs(self, differences: Sequence[NDArray[np.float64]], into: Measured) -> None:
        n = len(differences[0])
        positive, negative, (one, other) = self._positive[:, :n], self._negative[:, :n], self._both[:, :n]
        for delta, values in enumerate(differences):
            np.greater(values, 0, out=positive[delta])
            np.less(values, 0, out=negative[delta])
        for place, (a, b) in enumerate(self._vectors.couples):
            same = np.count_nonzero(np.logical_and(positive[a], positive[b], out=one))
            same += np.count_nonzero(np.logical_and(negative[a], negative[b], out=one))
            opposite = np.count_nonzero(np.logical_and(positive[a], negative[b], out=other))
            opposite += np.count_nonzero(np.logical_and(negative[a], positive[b], out=other))
            into.signs[place] += same, same + opposite
