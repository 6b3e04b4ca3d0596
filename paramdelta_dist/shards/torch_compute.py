"""The part of computing a tile that needs torch: methods that are more than sums, block by block, and sums on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import reduce
from typing import Any

import torch

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.kernels.blockwise import BlockRunner, Inputs
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.kernels.sum_gpu import DeviceMerger
from paramdelta_dist.kernels.torch_views import one_thread, view
from paramdelta_dist.methods import Reduction, find_method
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.inputs import info_of, inputs_of

Sources = Callable[[Segment], Sequence[RawElements | None]]
"""Returns the stored elements of a block in each model."""


class TorchComputer:
    """Makes and looks at segments of tiles. Keeps its scratch between them; for one thread at a time."""

    def __init__(self, device: str, statistics: tuple[Any, ...], adapters: Collection[int] = ()) -> None:
        """`statistics` are those of reductions over the whole model, `adapters` the models that lack what they do not change."""
        self._device, self._statistics, self._adapters = torch.device(device), statistics, adapters
        self._runners: dict[str, BlockRunner] = {}
        self._mergers: dict[tuple[float, ...], DeviceMerger] = {}

    def reduce(self, segment: Segment, sources: Sources, call: MethodCall, reduction: Reduction, statistics: tuple[Any, ...]) -> list[Any]:
        """The partials of a segment's blocks, in order; a single one where they may be added up as they come."""
        found: list[Any] = []
        for partial in self._partials(segment, sources, call, reduction, statistics):
            if found and reduction.exact:
                found[-1] = reduction.combine(found[-1], partial)
            else:
                found.append(partial)
        return found

    def apply(
        self,
        segment: Segment,
        out_of: Callable[[Segment], RawElements],
        call: MethodCall,
        sources: Sources,
        statistics: tuple[Any, ...] | None,
    ) -> Iterator[tuple[Segment, int, int]]:
        """Fill the memory that `out_of` gives for it, block by block; without `statistics` the reductions over the tensor, all of which is
        here, come first.

        Yields each block that was made, with the number of its elements that are not finite and the place of the first in it.
        """
        one_thread()
        apply = find_method(call.method).apply
        assert apply is not None, f"{call.method} computes nothing"
        if statistics is None:
            statistics = self._statistics
            for reduction in call.reductions[len(statistics) :]:
                total = reduce(reduction.combine, self._partials(segment, sources, call, reduction, statistics))
                statistics += (reduction.finalize(total, info_of(segment.span, call, statistics)),)
        info, begin = info_of(segment.span, call, statistics), segment.span.parts[0].first
        for block, base, terms in _blocks(segment, call, sources, self._adapters):
            out = tensor_of(out_of(block))
            yield block, *self._runner(call).apply(apply, info, begin + block.first, out, base, terms)

    def sum(
        self, out: RawElements, base: RawElements, deltas: Sequence[tuple[RawElements, RawElements]], weights: tuple[float, ...]
    ) -> tuple[int, int]:
        """`add_deltas` on a GPU."""
        if weights not in self._mergers:
            self._mergers[weights] = DeviceMerger(weights, self._device)
        pairs = [(tensor_of(post), tensor_of(old)) for post, old in deltas]
        return self._mergers[weights].merge(tensor_of(out), tensor_of(base), pairs)

    def _partials(
        self, segment: Segment, sources: Sources, call: MethodCall, reduction: Reduction, statistics: tuple[Any, ...]
    ) -> Iterator[Any]:
        """Of one block after the other."""
        one_thread()  # tiles of one shard are made in any thread, and torch counts threads for each of them
        info, dtype = info_of(segment.span, call, statistics), _torch_dtype(segment.span.dtype)
        for block, base, terms in _blocks(segment, call, sources, self._adapters):
            yield self._runner(call).collect(reduction.map, info, block.first, dtype, base, terms)

    def _runner(self, call: MethodCall) -> BlockRunner:
        if call.method not in self._runners:
            method = find_method(call.method)
            self._runners[call.method] = BlockRunner(method.scratch_blocks, self._device, wide=method.compute_float64)
        return self._runners[call.method]


def tensor_of(values: RawElements) -> torch.Tensor:
    """A 1-D tensor over the memory of `values`; a copy if that is not aligned."""
    return view(values.data, _torch_dtype(values.dtype))


def _blocks(
    segment: Segment, call: MethodCall, sources: Sources, adapters: Collection[int]
) -> Iterator[tuple[Segment, torch.Tensor | None, Inputs]]:
    """The blocks of a segment, each with its base and its (post, base) pairs, as stored."""
    for block in segment.blocks():  # each for itself: a segment may lie across several reads
        base, terms = inputs_of(block, call, sources(block), adapters)
        pairs = [(tensor_of(post), None if old is None else tensor_of(old)) for post, old in terms]
        yield block, None if base is None else tensor_of(base), pairs


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, DTYPES[name].torch)
    assert isinstance(dtype, torch.dtype)
    return dtype
