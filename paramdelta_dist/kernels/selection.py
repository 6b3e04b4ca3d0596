"""The k-th largest magnitude of a tensor that is never whole in memory, exactly, and which of its equals come before it.

Magnitudes are ordered as their bit patterns are, so the k-th is found digit by digit: count how often each leading digit
occurs, keep to the digit in which the k-th lies, count the next. Counts of blocks are added, in any order. Elements of
equal magnitude follow each other by their index. NaN counts as larger than infinity, so it is selected and then found.

    search = RankSearch.of(dtype, rank)
    while not search.found:
        search = search.narrowed(Σ search.histogram(keys) over blocks)
    cut = search.cut or search.cut_among([(first, search.count_equal(keys)) of each block, in order])
    cut.mask(keys, first, out) of each block
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

_KEY_BITS = {torch.float32: 31, torch.float64: 63}
_KEYS = {torch.float32: torch.int32, torch.float64: torch.int64}
_NAN = {torch.float32: 0x7F800001, torch.float64: 0x7FF0000000000001}
_END = 1 << 62
"""An index behind every element."""
DIGIT = 16
"""Bits that one reduction decides. A float32 takes two reductions, a float64 four."""


def magnitude_keys(values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Integers ordered as the magnitudes of values[n], float32 or float64; zeros are equal, and so are all NaN.

    `out` may be `values` itself, viewed as integers of its width.
    """
    bits = values.view(_KEYS[values.dtype])
    keys = torch.bitwise_and(bits, torch.iinfo(bits.dtype).max, out=out)
    return keys.clamp_(max=_NAN[values.dtype])


def magnitude(key: int, dtype: torch.dtype) -> float:
    """The magnitude that has this key."""
    return torch.tensor(key, dtype=_KEYS[dtype]).view(dtype).item()


class RankCut(NamedTuple):
    """A place in the order of selection, where larger keys come first and equal ones by their index."""

    key: int
    """Elements with larger keys are before it, those with smaller ones are not."""
    start: int
    """Of elements with this very key those with a lower index than this are before it."""
    equals: int
    """Of those from `start` on so many are. They are all in the block that has `start`."""

    def mask(self, keys: torch.Tensor, first: int, out: torch.Tensor) -> torch.Tensor:
        """Make bool out[n] say which of keys[n], which begin with element `first` of the tensor, are before the cut."""
        start = min(max(self.start - first, 0), keys.numel())
        torch.ge(keys[:start], self.key, out=out[:start])
        torch.gt(keys[start:], self.key, out=out[start:])
        if self.equals and first <= self.start < first + keys.numel():
            ties = torch.nonzero(keys[start:] == self.key).flatten()[: self.equals]
            out[start:].index_fill_(0, ties, True)
        return out


def nothing(dtype: torch.dtype) -> RankCut:
    """The cut that no element is before, for values in float32 or float64."""
    return RankCut(torch.iinfo(_KEYS[dtype]).max, 0, 0)


def everything() -> RankCut:
    """The cut that all elements are before."""
    return RankCut(0, _END, 0)


class RankSearch(NamedTuple):
    """How far the search for an element in the order of selection has come: among those whose keys begin with `prefix`."""

    rank: int
    """Its place among them; 1 is the first."""
    prefix: int
    """The leading bits of its key, as far as they are known."""
    unknown: int
    """How many bits of the key are not."""
    equals: int = 0
    """Once it is found: how many elements have its key."""

    @classmethod
    def of(cls, dtype: torch.dtype, rank: int) -> RankSearch:
        """For the `rank`-th largest magnitude, from 1 to the number of elements, of values in float32 or float64."""
        return cls(rank, 0, _KEY_BITS[dtype])

    @property
    def found(self) -> bool:
        """Whether the key is known: it is `prefix`, and `rank` counts among elements that have it."""
        return self.unknown == 0

    @property
    def _digit(self) -> int:
        return self.unknown % DIGIT or DIGIT

    def histogram(self, keys: torch.Tensor) -> torch.Tensor:
        """How often each next digit, int64[2^bits], occurs among keys[n] that begin with the prefix. Add those of all blocks."""
        rest = self.unknown - self._digit
        digits = keys >> rest if rest else keys
        if self.unknown not in _KEY_BITS.values():
            digits = digits[(keys >> self.unknown) == self.prefix] & ((1 << self._digit) - 1)
        return torch.bincount(digits, minlength=1 << self._digit)

    def narrowed(self, histogram: torch.Tensor) -> RankSearch:
        """The search with one digit more, given the histogram of the whole tensor. Raises ValueError where that has fewer
        than `rank` elements."""
        from_above = histogram.flip(0).cumsum(0)
        if self.rank > int(from_above[-1]):
            raise ValueError(f"element {self.rank} was looked for among {int(from_above[-1])}")
        place = int(torch.searchsorted(from_above, self.rank))
        digit = histogram.numel() - 1 - place
        here = int(histogram[digit])
        rank = self.rank - (int(from_above[place]) - here)
        return RankSearch(rank, self.prefix << self._digit | digit, self.unknown - self._digit, here)

    @property
    def cut(self) -> RankCut | None:
        """The cut behind the element that was found, where that is the last one of its key; None where ties must be counted."""
        return RankCut(self.prefix, _END, 0) if self.found and self.rank == self.equals else None

    def count_equal(self, keys: torch.Tensor) -> int:
        """How many of keys[n] are the one that was found."""
        return int((keys == self.prefix).sum())

    def cut_among(self, equals: Iterable[tuple[int, int]]) -> RankCut:
        """The cut behind the element that was found, given (first element, ties) of each block that has any, in order.

        Raises ValueError where that are fewer than `rank`.
        """
        rank = self.rank
        for first, count in equals:
            if rank <= count:
                return RankCut(self.prefix, first, rank)
            rank -= count
        raise ValueError(f"tie {self.rank} was looked for among {self.rank - rank}")
