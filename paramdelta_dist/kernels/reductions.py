"""Sums over tensors in float64 that come out the same to the last bit however a tensor is cut, and on every device.

Within a chunk, elements are added along a tree of halves whose shape is fixed. From there on sums are exact, so that the
order in which chunks, blocks and workers are added does not matter: integers, the sum of float64 numbers as multiples of
the least of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

SUM_CHUNK = 1 << 12
"""Elements of a chunk of a tensor, counted from its start, within which the order of adding is fixed. Who takes sums over pieces of a
tensor begins each piece at a multiple of it."""
_UNIT = 1074
"""Every finite float64 is a multiple of 2^-1074."""
_BLOCK = 64 * SUM_CHUNK
"""Elements that are taken to float64 at a time on a CPU."""
_DEVICE_BLOCK = 1024 * SUM_CHUNK


class ExactSum(NamedTuple):
    """A sum of float64 numbers, exact. Sums of parts give the sum of the whole, in any order."""

    units: int = 0
    """Of what is finite, in multiples of 2^-1074."""
    infinite: float = 0.0
    """Of what is not: an infinity or NaN, or 0 if there is none."""

    def plus(self, other: ExactSum) -> ExactSum:
        """The sum of both."""
        return ExactSum(self.units + other.units, self.infinite + other.infinite)

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        if self.infinite:
            return self.infinite
        try:
            return self.units / (1 << _UNIT)
        except OverflowError:
            return math.inf if self.units > 0 else -math.inf

    @classmethod
    def of(cls, numbers: Sequence[float]) -> ExactSum:
        """The exact sum of float64 numbers."""
        units, infinite = 0, 0.0
        for number in numbers:
            if math.isfinite(number):
                mantissa, exponent = math.frexp(number)
                shift = exponent - 53 + _UNIT
                whole = int(math.ldexp(mantissa, 53))
                units += whole << shift if shift >= 0 else whole >> -shift
            else:
                infinite += number
        return cls(units, infinite)


def add_halves(values: torch.Tensor) -> torch.Tensor:
    """The sums of the rows of values[m, k], of float64, as float64[m]: the second half of each is added to the first, and so
    on, in place. The order depends on k alone."""
    width = values.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half].add_(values[:, half:width])
        width = half
    return values[:, 0] if width else values.new_zeros(values.shape[0])


_made = threading.local()


def reducer(device: torch.device) -> Reducer:
    """The calling thread's, for this device."""
    found: Reducer | None = _made.__dict__.get(str(device))
    if found is None:
        found = _made.__dict__[str(device)] = Reducer(device)
    return found


class Reducer:
    """Takes sums over values in float32 or float64 of one shape, in reused memory (4 MiB on a CPU). One per thread.

    Values that are a piece of a tensor begin where a chunk does and end where one does or with the tensor; or the pieces are
    always the same.
    """

    def __init__(self, device: torch.device) -> None:
        size = _BLOCK if device.type == "cpu" else _DEVICE_BLOCK
        self._left, self._right = (torch.empty(size, dtype=torch.float64, device=device) for _ in range(2))

    def total(self, values: torch.Tensor) -> ExactSum:
        """Σ values[n]."""
        return self._sum(left.copy_(part) for left, part in self._parts(self._left, values))

    def absolute(self, values: torch.Tensor) -> ExactSum:
        """Σ |values[n]|."""
        return self._sum(left.copy_(part).abs_() for left, part in self._parts(self._left, values))

    def dot(self, one: torch.Tensor, two: torch.Tensor) -> ExactSum:
        """Σ one[n] · two[n]. The products of float32 numbers are exact."""
        if one is two:
            return self._sum(left.copy_(part).square_() for left, part in self._parts(self._left, one))
        parts = zip(self._parts(self._left, one), self._parts(self._right, two), strict=True)
        return self._sum(left.copy_(part).mul_(right.copy_(other)) for (left, part), (right, other) in parts)

    def gram(self, vectors: Sequence[torch.Tensor]) -> dict[tuple[int, int], ExactSum]:
        """Σ vectors[i][n] · vectors[j][n] for each i <= j."""
        return {(i, j): self.dot(one, vectors[j]) for i, one in enumerate(vectors) for j in range(i, len(vectors))}

    def _parts(self, block: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Memory of `block` for each part of values[n], and the part."""
        return ((block[: part.numel()], part) for part in torch.split(values, block.numel()))

    def _sum(self, parts: Iterable[torch.Tensor]) -> ExactSum:
        """Of float64 values[n] in parts, each of which is overwritten."""
        total = ExactSum()
        for part in parts:
            whole = part.numel() // SUM_CHUNK * SUM_CHUNK
            numbers: list[float] = add_halves(part[:whole].view(-1, SUM_CHUNK)).tolist()
            if whole < part.numel():
                numbers += add_halves(part[None, whole:]).tolist()
            total = total.plus(ExactSum.of(numbers))
        return total
