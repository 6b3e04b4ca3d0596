"""Reductions that find where to cut a tensor's elements in the order of their magnitudes, exactly, in three looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import Reduction

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

Keys = Callable[["Block", int], "torch.Tensor"]
"""`keys(block, ranking)` → the int32[n] keys (kernels/selection.py) of one of the rankings of a tensor's elements."""
Ranks = Callable[["TensorInfo"], Sequence[Sequence[int]]]
"""The cuts that each ranking needs: how many elements are before them, from 0 to all of the tensor's."""

BINS = 1 << 16


def float32_keys(values: torch.Tensor) -> torch.Tensor:
    """int32 keys of values[n] rounded to float32: what tells two magnitudes apart, in every compute dtype."""
    import torch

    from paramdelta_dist.kernels.selection import magnitude_keys

    narrow = values.to(torch.float32)
    return magnitude_keys(narrow, out=narrow.view(torch.int32))


def delta_keys(block: Block, number: int) -> torch.Tensor:
    """int32[n] keys of the delta of `block.terms[number]`; uses the first block of scratch."""
    return float32_keys(block.delta(block.terms[number], block.scratch[0]))


def find_ranks(keys: Keys, ranks: Ranks, *, at: int = 0) -> tuple[Reduction, ...]:
    """Three reductions, the first of which is number `at` of the method's. The last one finds a list of `Cut` for each ranking."""
    return _reductions(keys, ranks, at, trivial=True)


def find_keys(keys: Keys, ranks: Ranks, *, at: int = 0) -> tuple[Reduction, ...]:
    """Two reductions; the second finds a list of `RankSearch` for each ranking; its `prefix` is the key of that rank, from 1 on."""
    return _reductions(keys, ranks, at, trivial=False)[:2]


def _reductions(keys: Keys, ranks: Ranks, at: int, *, trivial: bool) -> tuple[Reduction, ...]:

    def first_digits(block: Block) -> Any:
        import torch

        from paramdelta_dist.kernels.selection import RankSearch

        start = RankSearch.of(torch.float32, 1)
        return [start.histogram(keys(block, ranking)) for ranking in range(len(ranks(block.tensor)))]

    def start_searches(total: Any, info: TensorInfo) -> Any:
        import torch

        from paramdelta_dist.kernels.selection import RankSearch, everything, nothing

        def begun(rank: int, histogram: torch.Tensor) -> Any:
            if trivial and rank in (0, info.elements):  # no need to look
                return everything() if rank else nothing(torch.float32)
            return RankSearch.of(torch.float32, rank).narrowed(histogram)

        return [[begun(rank, histogram) for rank in wanted] for wanted, histogram in zip(ranks(info), total, strict=True)]

    def last_digits(block: Block) -> Any:
        return of_searches(block, at, lambda search, found: search.histogram(found))

    def end_searches(total: Any, info: TensorInfo) -> Any:
        return [
            [each if histogram is None else each.narrowed(histogram) for each, histogram in zip(row, histograms, strict=True)]
            for row, histograms in zip(info.statistics[at], total, strict=True)
        ]

    def ties(block: Block) -> Any:
        return of_searches(block, at + 1, lambda search, found: None if search.cut else [(block.first, search.count_equal(found))])

    def cut(total: Any, info: TensorInfo) -> Any:
        from paramdelta_dist.kernels.selection import RankCut

        return [
            [each if isinstance(each, RankCut) else each.cut or each.cut_among(counts) for each, counts in zip(row, lists, strict=True)]
            for row, lists in zip(info.statistics[at + 1], total, strict=True)
        ]

    def of_searches(block: Block, number: int, look: Callable[[Any, torch.Tensor], Any]) -> Any:
        from paramdelta_dist.kernels.selection import RankSearch

        made = []
        for ranking, row in enumerate(block.statistics[number]):
            searches = any(isinstance(each, RankSearch) and not (each.found and each.cut) for each in row)
            found = keys(block, ranking) if searches else None
            made.append([look(each, found) if found is not None and isinstance(each, RankSearch) else None for each in row])
        return made

    return (
        Reduction(first_digits, add_histograms, start_searches, exact=True, partial_bytes=histogram_bytes),
        Reduction(last_digits, add_histograms, end_searches, exact=True, partial_bytes=histogram_bytes),
        Reduction(ties, _joined, cut, exact=True),
    )


def histogram_bytes(terms: int, shape: tuple[int, ...]) -> int:
    """Of the partials of a reduction that counts digits, one ranking for each term."""
    return 2 * max(terms, 1) * BINS * 8


def add_histograms(total: Any, more: Any) -> Any:
    """Nested lists of histograms, or of None, added in place."""
    if isinstance(total, list):
        return [add_histograms(one, two) for one, two in zip(total, more, strict=True)]
    return None if total is None else total.add_(more)


def _joined(total: Any, more: Any) -> Any:
    """Nested lists of lists of ties, or of None, one behind the other."""
    for one, two in zip(total, more, strict=True):
        for ties, next_ties in zip(one, two, strict=True):
            if ties is not None:
                ties.extend(next_ties)
    return total
