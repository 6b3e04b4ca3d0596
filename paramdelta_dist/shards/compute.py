"""Computes the output bytes of one tile: a weighted sum, a copy, or a method block by block; refuses what would be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.extras import is_variance, without_variances
from paramdelta_dist.errors import CheckpointError, NonFinite
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.methods import Reduction, find_method
from paramdelta_dist.output.hold import Hold
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.probe import Probe
from paramdelta_dist.shards.reader import FetchedTile
from paramdelta_dist.storage import StorageConfig, redact

if TYPE_CHECKING:
    from paramdelta_dist.shards.torch_compute import TorchComputer
from paramdelta_dist.shards.inputs import inputs_of, values


@dataclass(frozen=True)
class MergeContext:
    """The context that all shards of a merge share: everything a worker needs besides the shard."""

    models: tuple[str, ...]
    output: str
    storage: StorageConfig
    fingerprint: str
    hold: Hold | None
    """The right to write to the output; None where nothing is written."""
    allow_nonfinite: bool
    tile_size: int
    tiles_in_flight: int
    threads: int
    """That make tiles of one shard."""
    device: str
    """cpu or cuda."""
    probe: Probe | None = None
    """Measures what is read and made, for a report."""
    statistics: tuple[Any, ...] = ()
    """The results of reductions over the whole model, where the method has any."""


class TileComputer:
    """Computes tiles into the caller's memory, and the partials of reductions over tiles. Keeps its scratch between them; each
    thread has one of its own."""

    def __init__(self, job: MergeContext, shard: Shard) -> None:
        self._job, self._calls = job, shard.calls
        self._torch: TorchComputer | None = None
        self._variances: dict[int, list[tuple[int, int]]] = {}
        """Elements of a span, by its start, that are variances."""

    def make(self, fetched: FetchedTile, out: memoryview, statistics: tuple[Any, ...] | None = None) -> int:
        """Fill `out` with the tile. Returns how many elements are NaN or infinite, where the recipe lets them through.

        `statistics` are those of the tile's streamed tensor, if it has a part of one. Raises NonFinite where the recipe
        lets nothing through, CheckpointError where copied tensors disagree.
        """
        nonfinite = position = 0
        for segment in fetched.tile.segments:
            size = (segment.last - segment.first) * DTYPES[segment.span.dtype].itemsize
            piece = out[position : position + size]
            position += size
            if not segment.span.merged:
                self._copy(fetched, segment, piece)
                continue
            call = self._calls[segment.span.call]
            if find_method(call.method).weights is not None:
                count, first = self._sum(segment, piece, call, self._sources(fetched, segment))
            else:
                whole = segment.span.reductions == 0 or (segment.first, segment.last) == (0, segment.span.elements)
                count, first = self._with_torch().apply(
                    segment, RawElements(piece, segment.span.dtype), call, partial(self._sources, fetched), None if whole else statistics
                )
            if count and not self._job.allow_nonfinite:
                wrong = Segment(segment.span, segment.first + first, segment.first + first + 1)
                raise NonFinite(self._nonfinite_message(wrong, 0, self._sources(fetched, wrong)))
            nonfinite += count
            self._require_variances(segment, piece)
        return nonfinite

    def reduce(self, fetched: FetchedTile, segment: Segment, reduction: Reduction, statistics: tuple[Any, ...]) -> list[Any]:
        """The partials of a segment's blocks, in order; a single one where they may be added up as they come."""
        return self._with_torch().reduce(segment, partial(self._sources, fetched), self._calls[segment.span.call], reduction, statistics)

    def _sources(self, fetched: FetchedTile, part: Segment) -> list[RawElements | None]:
        """The stored elements, in each model, of a part of a tile that lies within one read, as every block does."""
        return [values(fetched, part, model) for model in range(len(self._job.models))]

    def _with_torch(self) -> TorchComputer:
        if self._torch is None:
            from paramdelta_dist.shards.torch_compute import TorchComputer

            self._torch = TorchComputer(self._job.device, self._job.statistics)
        return self._torch

    def _sum(self, segment: Segment, piece: memoryview, call: MethodCall, sources: Sequence[RawElements | None]) -> tuple[int, int]:
        """The fast path: a sum of weighted deltas. Returns how many elements are not finite, and the place of the first."""
        method = find_method(call.method)
        assert method.weights is not None
        weights = tuple(method.weights(call.parameters, [term.values for term in call.terms]))
        base, terms = inputs_of(segment, call, sources)
        assert base is not None
        out = RawElements(piece, segment.span.dtype)
        deltas = [(post, old) for post, old in terms if old is not None]
        assert len(deltas) == len(terms), f"{call.method}: a sum of deltas has a term without a base"
        if self._job.device != "cpu":
            return self._with_torch().sum(out, base, deltas, weights)
        from paramdelta_dist.kernels.sum_cpu import add_deltas  # here: numba and torch are a lot of memory, and few need both

        return add_deltas(out, base, deltas, weights)

    def _nonfinite_message(self, segment: Segment, place: int, sources: Sequence[RawElements | None]) -> str:
        from paramdelta_dist.kernels.sum_cpu import is_finite

        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not is_finite(values, place)
        ]
        tensor, element = segment.span.tensor_at(segment.first + place)
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"it is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _require_variances(self, segment: Segment, piece: memoryview) -> None:
        """Raise CheckpointError for a variance below zero: the root that a model takes of it is NaN, and so is all that it says."""
        span, width = segment.span, DTYPES[segment.span.dtype].itemsize
        if span.start not in self._variances:
            ends = list(accumulate(tensor.elements for tensor in span.tensors))
            self._variances[span.start] = [
                (end - tensor.elements, end) for tensor, end in zip(span.tensors, ends, strict=True) if is_variance(tensor.name)
            ]
        for begin, end in self._variances[span.start]:
            first, last = max(begin, segment.first), min(end, segment.last)
            held = bytes(piece[max(0, first - segment.first) * width : max(0, last - segment.first) * width])
            signs = held[width - 1 :: width]
            for place in (place for place, sign in enumerate(signs) if sign & 128):
                value = held[place * width : (place + 1) * width]
                if any(value[:-1]) or value[-1] != 128:  # zero has a sign, too
                    tensor, element = span.tensor_at(first + place)
                    raise CheckpointError(
                        f"tensor {tensor.name!r}, element {element}: the result is a variance below zero, and the model would say nothing "
                        f"but NaN. Nothing was published; {without_variances([tensor.name])}, or lower the weights"
                    )

    def _copy(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        """Take the tensor from the first model that has it; rows of a vocabulary are in that model's dtype, not yet the output's."""
        width = DTYPES[segment.span.dtype].itemsize
        for block in segment.blocks():
            target = piece[(block.first - segment.first) * width : (block.last - segment.first) * width]
            copied = False
            for model, url in enumerate(self._job.models):
                data, source = fetched.source(block, model), segment.span.sources[model]
                if data is None or source is None:
                    continue
                if not copied:
                    copied = True
                    if source.dtype == segment.span.dtype:
                        target[:] = data
                    else:
                        from paramdelta_dist.kernels.sum_cpu import add_deltas

                        add_deltas(RawElements(target, segment.span.dtype), RawElements(data, source.dtype), [], [])
                elif data != target:
                    differing = next(place for place, (one, other) in enumerate(zip(data, target, strict=True)) if one != other)
                    tensor, _ = segment.span.tensor_at(block.first + differing // width)
                    raise CheckpointError(
                        f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                        "values than the base; it must agree in all models, or be left out (`exclude`), which takes the base's"
                    )
            assert copied, f"{segment.span.tensors[0].name} is of no model"
