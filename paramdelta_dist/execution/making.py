"""What is done to a tile once its bytes are there: merge, copy, and refuse what would be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.errors import CheckpointError, NonFinite
from paramdelta_dist.execution.reader import FetchedTile
from paramdelta_dist.execution.watching import Watcher
from paramdelta_dist.kernels.blocks import Subject
from paramdelta_dist.kernels.blockwise import BlockRunner
from paramdelta_dist.kernels.device import DeviceMerger
from paramdelta_dist.kernels.merging import Merger, view
from paramdelta_dist.methods import Sweep, find_method
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.runs import Run
from paramdelta_dist.planning.settings import Settings
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.storage import StorageConfig, redact


@dataclass(frozen=True)
class Job:
    """What all shards of a merge have in common: everything a worker needs besides the shard."""

    models: tuple[str, ...]
    output: str
    storage: StorageConfig
    fingerprint: str
    allow_nonfinite: bool
    tile_size: int
    tiles_in_flight: int
    threads: int
    """That make tiles of one shard."""
    device: str
    """cpu or cuda."""
    watcher: Watcher | None = None
    """Who looks at what is read."""
    statistics: tuple[Any, ...] = ()
    """What sweeps over the whole model found, where the method has any."""


class TileMaker:
    """Makes the output bytes of tiles, in the caller's memory, and looks at tiles for statistics. Keeps its scratch between
    them; one a thread."""

    def __init__(self, job: Job, shard: Shard) -> None:
        self._job, self._settings, self._device = job, shard.settings, torch.device(job.device)
        self._mergers: dict[tuple[float, ...], Merger | DeviceMerger] = {}
        self._runners: dict[str, BlockRunner] = {}

    def make(self, fetched: FetchedTile, out: memoryview, statistics: tuple[Any, ...] | None = None) -> int:
        """Fill `out` with the tile. Returns how many elements are NaN or infinite, where the recipe lets them through.

        `statistics` are those of the tile's streamed tensor, if it has a part of one. Raises NonFinite where the recipe
        lets nothing through, CheckpointError where copied tensors disagree.
        """
        nonfinite = position = 0
        for segment in fetched.tile.segments:
            size = (segment.last - segment.first) * DTYPES[segment.run.dtype].itemsize
            piece = out[position : position + size]
            position += size
            if not segment.run.merged:
                self._copy(fetched, segment, piece)
                continue
            settings = self._settings[segment.run.settings]
            method = find_method(settings.method)
            if method.weights is not None:
                nonfinite += self._merge(fetched, segment, piece, settings)
            else:
                whole = segment.run.sweeps == 0 or (segment.first, segment.last) == (0, segment.run.elements)
                nonfinite += self._apply(fetched, segment, piece, settings, None if whole else statistics)
        return nonfinite

    def look(self, fetched: FetchedTile, segment: Segment, sweep: Sweep, statistics: tuple[Any, ...]) -> list[Any]:
        """The partials of a segment's blocks, in order; a single one where they may be added up as they come."""
        settings = self._settings[segment.run.settings]
        subject = subject_of(segment.run, settings, statistics)
        partials: list[Any] = []
        for block in _blocks(segment):
            base, terms, _ = self._inputs(fetched, block, settings)
            dtype = _torch_dtype(segment.run.dtype)
            partial = self._runner(settings).collect(sweep.collect, subject, block.first, dtype, base, terms)
            if partials and sweep.exact:
                partials[-1] = sweep.combine(partials[-1], partial)
            else:
                partials.append(partial)
        return partials

    def _merge(self, fetched: FetchedTile, segment: Segment, piece: memoryview, settings: Settings) -> int:
        """The fast path: a sum of weighted deltas."""
        method = find_method(settings.method)
        assert method.weights is not None
        weights = tuple(method.weights(settings.parameters, [term.values for term in settings.terms]))
        base, terms, sources = self._inputs(fetched, segment, settings)
        assert base is not None
        deltas = [(post, old) for post, old in terms if old is not None]
        count, first = self._merger(weights).merge(view(piece, _torch_dtype(segment.run.dtype)), base, deltas)
        if count and not self._job.allow_nonfinite:
            raise NonFinite(self._nonfinite_message(segment, first, sources))
        return count

    def _apply(
        self, fetched: FetchedTile, segment: Segment, piece: memoryview, settings: Settings, statistics: tuple[Any, ...] | None
    ) -> int:
        """Any other method, block by block; without `statistics` the sweeps over the tensor, all of which is here, come first."""
        apply = find_method(settings.method).apply
        assert apply is not None, f"{settings.method} computes nothing"
        if statistics is None:
            statistics = self._job.statistics
            for sweep in settings.sweeps[len(statistics) :]:
                total = None
                for block in _blocks(segment):
                    (partial,) = self.look(fetched, block, sweep, statistics)
                    total = partial if block.first == 0 else sweep.combine(total, partial)
                statistics += (sweep.finish(total, subject_of(segment.run, settings, statistics)),)
        subject, out, count = subject_of(segment.run, settings, statistics), view(piece, _torch_dtype(segment.run.dtype)), 0
        begin = segment.run.tensors[0].first
        for block in _blocks(segment):
            base, terms, sources = self._inputs(fetched, block, settings)
            target = out[block.first - segment.first : block.last - segment.first]
            more, first = self._runner(settings).apply(apply, subject, begin + block.first, target, base, terms)
            if more and not self._job.allow_nonfinite:
                raise NonFinite(self._nonfinite_message(block, first, sources))
            count += more
        return count

    def _merger(self, weights: tuple[float, ...]) -> Merger | DeviceMerger:
        if self._device.type == "cpu":  # scratch is shared by all weights
            merger = self._mergers.setdefault((), Merger((), self._device))
            merger.weights = weights
            return merger
        if weights not in self._mergers:
            self._mergers[weights] = DeviceMerger(weights, self._device)
        return self._mergers[weights]

    def _runner(self, settings: Settings) -> BlockRunner:
        if settings.method not in self._runners:
            method = find_method(settings.method)
            self._runners[settings.method] = BlockRunner(method.scratch, self._device, wide=method.wide)
        return self._runners[settings.method]

    def _inputs(
        self, fetched: FetchedTile, segment: Segment, settings: Settings
    ) -> tuple[torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor | None]], list[torch.Tensor | None]]:
        """The base, the (post, base) pairs, and the models' values of a segment, as stored."""
        sources = [self._values(fetched, segment, model) for model in range(len(self._job.models))]
        base = _required(sources, 0, segment.run) if settings.based else None
        terms = [
            (_required(sources, term.post, segment.run), None if term.base is None else _required(sources, term.base, segment.run))
            for term in settings.terms
        ]
        return base, terms, sources

    def _nonfinite_message(self, segment: Segment, place: int, sources: Sequence[torch.Tensor | None]) -> str:
        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not torch.isfinite(values[place])
        ]
        tensor, element = segment.run.tensor_at(segment.first + place)
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"it is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _copy(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        """Take the tensor from the first model that has it; rows of a vocabulary are in that model's dtype, not yet the output's."""
        width = DTYPES[segment.run.dtype].itemsize
        for block in _blocks(segment):
            target = piece[(block.first - segment.first) * width : (block.last - segment.first) * width]
            copied = False
            for model, url in enumerate(self._job.models):
                data, source = fetched.source(block, model), segment.run.sources[model]
                if data is None or source is None:
                    continue
                if not copied:
                    copied = True
                    if source.dtype == segment.run.dtype:
                        target[:] = data
                    else:
                        view(target, _torch_dtype(segment.run.dtype)).copy_(view(data, _torch_dtype(source.dtype)))
                elif data != target:
                    differing = next(place for place, (one, other) in enumerate(zip(data, target, strict=True)) if one != other)
                    tensor, _ = segment.run.tensor_at(block.first + differing // width)
                    raise CheckpointError(
                        f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                        "values than the base; it must agree in all models"
                    )
            assert copied, f"{segment.run.tensors[0].name} is of no model"

    def _values(self, fetched: FetchedTile, segment: Segment, model: int) -> torch.Tensor | None:
        data, source = fetched.source(segment, model), segment.run.sources[model]
        return None if data is None or source is None else view(data, _torch_dtype(source.dtype))


def subject_of(run: Run, settings: Settings, statistics: tuple[Any, ...]) -> Subject:
    """What a method is told of the tensor of a run."""
    tensor = run.tensors[0]
    values, numbers = tuple(term.values for term in settings.terms), tuple(term.number for term in settings.terms)
    return Subject(tensor.name, tensor.shape, settings.parameters, values, numbers, statistics)


def _blocks(segment: Segment) -> Iterator[Segment]:
    """A segment, whose start is where a block starts, as blocks."""
    for first in range(segment.first, segment.last, segment.run.block):
        yield Segment(segment.run, first, min(first + segment.run.block, segment.last))


def _required(sources: Sequence[torch.Tensor | None], model: int, run: Run) -> torch.Tensor:
    found = sources[model]
    assert found is not None, f"{run.tensors[0].name} of model {model} was not planned"
    return found


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, DTYPES[name].torch)
    assert isinstance(dtype, torch.dtype)
    return dtype
