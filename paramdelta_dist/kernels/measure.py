"""Measures a chunk of several models: sums of their differences in float64, counts, and the spread of magnitudes.

A vector is the difference of two models, element by element. All sums of a chunk are made in one thread, in one order and in
scratch memory of its own, so that they depend on the chunk's values alone; who adds chunks does so in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.kernels.measure_numba import EXPONENTS, measure, widen_bfloat16
from paramdelta_dist.kernels.raw import RawElements

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS = 64
LOWEST = -48
"""Bin b counts magnitudes in [2^(LOWEST+b), 2^(LOWEST+b+1)); the first and the last hold what is beyond them, zeros apart."""
_EXPONENT_OF_ONE = 1023
_STORED: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


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


class Measurer:
    """Measures chunks of at most `size` elements. Keeps its scratch between them; one a thread."""

    def __init__(self, vectors: Vectors, size: int) -> None:
        self._vectors = vectors
        used = sorted({model for pair in vectors.pairs for model in pair} | set(vectors.bases))
        place = {model: row for row, model in enumerate(used)}
        self._rows = list(place.items())
        self._models, self._differences = np.empty((len(used), size)), np.empty((len(vectors.pairs), size))
        self._pairs = _table([(place[minuend], place[subtrahend]) for minuend, subtrahend in vectors.pairs])
        self._dots, self._couples = _table(vectors.dots), _table(vectors.couples)
        self._bases = np.array([place[model] for model in vectors.bases], np.int64)
        self._exponents = np.zeros((vectors.deltas, EXPONENTS), np.int64)

    def measure(self, models: Mapping[int, RawElements], sums: Floats, into: Measured) -> None:
        """Measure models[·][n]: the sums replace `sums`, everything else, whose order does not matter, is added to `into`."""
        n = 0
        for model, row in self._rows:
            n = _widen(models[model], self._models[row])
        counts, peaks = self._exponents, into.peaks.view(np.int64)
        tables = (self._pairs, self._dots, self._bases, self._couples)
        measure(n, self._models, *tables, self._vectors.full, self._differences, sums, peaks, into.zeros, counts, into.signs)
        if not self._vectors.full:
            return
        first, last = _EXPONENT_OF_ONE + LOWEST, _EXPONENT_OF_ONE + LOWEST + BINS - 1
        into.histograms[:, 0] += counts[:, : first + 1].sum(axis=1)
        into.histograms[:, 1:-1] += counts[:, first + 1 : last]
        into.histograms[:, -1] += counts[:, last:].sum(axis=1)
        counts[:] = 0

    def difference(self, delta: int, n: int) -> Floats:
        """Elements [n] of a delta in the chunk of n that was measured last; overwritten with the next."""
        return self._differences[delta, :n]


def widened(values: RawElements) -> Floats:
    """Elements [n] as float64, in memory of their own."""
    out = np.empty(len(np.frombuffer(values.data, _STORED[values.dtype])))
    _widen(values, out)
    return out


def _widen(values: RawElements, row: Floats) -> int:
    """Bring elements [n] to float64 in the first n places of `row`; returns n."""
    stored = np.frombuffer(values.data, _STORED[values.dtype])
    out = row[: len(stored)]
    if values.dtype == "BF16":
        widen_bfloat16(out, stored if stored.flags.aligned else stored.copy())
    else:
        out[:] = stored
    return len(stored)


def _table(pairs: Sequence[tuple[int, int]]) -> Counts:
    return np.array(pairs, np.int64).reshape(-1, 2)
