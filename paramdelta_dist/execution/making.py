"""What is done to a tile once its bytes are there: sum, copy, or let a method work on it, and refuse what would be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.extras import is_variance, without_variances
from paramdelta_dist.errors import CheckpointError, NonFinite
from paramdelta_dist.execution.holding import Hold
from paramdelta_dist.execution.reader import FetchedTile
from paramdelta_dist.execution.watching import Watcher
from paramdelta_dist.kernels.blocks import Subject
from paramdelta_dist.kernels.values import Values
from paramdelta_dist.methods import Sweep, find_method
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.runs import Run
from paramdelta_dist.planning.settings import Settings
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.storage import StorageConfig, redact

if TYPE_CHECKING:
    from paramdelta_dist.execution.torch_making import TorchMaker


@dataclass(frozen=True)
class Job:
    """What all shards of a merge have in common: everything a worker needs besides the shard."""

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
    watcher: Watcher | None = None
    """Who looks at what is read."""
    statistics: tuple[Any, ...] = ()
    """What sweeps over the whole model found, where the method has any."""


class TileMaker:
    """Makes the output bytes of tiles, in the caller's memory, and looks at tiles for statistics. Keeps its scratch between
    them; one a thread."""

    def __init__(self, job: Job, shard: Shard) -> None:
        self._job, self._settings = job, shard.settings
        self._torch: TorchMaker | None = None
        self._variances: dict[int, list[tuple[int, int]]] = {}
        """Elements of a run, by its start, that are variances."""

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
            if find_method(settings.method).weights is not None:
                count, first = self._sum(segment, piece, settings, self._sources(fetched, segment))
            else:
                whole = segment.run.sweeps == 0 or (segment.first, segment.last) == (0, segment.run.elements)
                count, first = self._with_torch().apply(
                    segment, Values(piece, segment.run.dtype), settings, partial(self._sources, fetched), None if whole else statistics
                )
            if count and not self._job.allow_nonfinite:
                wrong = Segment(segment.run, segment.first + first, segment.first + first + 1)
                raise NonFinite(self._nonfinite_message(wrong, 0, self._sources(fetched, wrong)))
            nonfinite += count
            self._require_variances(segment, piece)
        return nonfinite

    def look(self, fetched: FetchedTile, segment: Segment, sweep: Sweep, statistics: tuple[Any, ...]) -> list[Any]:
        """The partials of a segment's blocks, in order; a single one where they may be added up as they come."""
        return self._with_torch().look(segment, partial(self._sources, fetched), self._settings[segment.run.settings], sweep, statistics)

    def _sources(self, fetched: FetchedTile, part: Segment) -> list[Values | None]:
        """What each model has of a part of a tile that lies within one read, as every block does."""
        return [_values(fetched, part, model) for model in range(len(self._job.models))]

    def _with_torch(self) -> TorchMaker:
        if self._torch is None:
            from paramdelta_dist.execution.torch_making import TorchMaker

            self._torch = TorchMaker(self._job.device, self._job.statistics)
        return self._torch

    def _sum(self, segment: Segment, piece: memoryview, settings: Settings, sources: Sequence[Values | None]) -> tuple[int, int]:
        """The fast path: a sum of weighted deltas. Returns how many elements are not finite, and the place of the first."""
        method = find_method(settings.method)
        assert method.weights is not None
        weights = tuple(method.weights(settings.parameters, [term.values for term in settings.terms]))
        base, terms = inputs_of(segment, settings, sources)
        assert base is not None
        out, deltas = Values(piece, segment.run.dtype), [(post, old) for post, old in terms if old is not None]
        if self._job.device != "cpu":
            return self._with_torch().sum(out, base, deltas, weights)
        from paramdelta_dist.kernels.compiled import add_deltas  # here: numba and torch are a lot of memory, and few need both

        return add_deltas(out, base, deltas, weights)

    def _nonfinite_message(self, segment: Segment, place: int, sources: Sequence[Values | None]) -> str:
        from paramdelta_dist.kernels.compiled import is_finite

        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not is_finite(values, place)
        ]
        tensor, element = segment.run.tensor_at(segment.first + place)
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"it is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _require_variances(self, segment: Segment, piece: memoryview) -> None:
        """Raise CheckpointError for a variance below zero: the root that a model takes of it is NaN, and so is all that it says."""
        run, width = segment.run, DTYPES[segment.run.dtype].itemsize
        if run.start not in self._variances:
            ends = list(accumulate(tensor.elements for tensor in run.tensors))
            self._variances[run.start] = [
                (end - tensor.elements, end) for tensor, end in zip(run.tensors, ends, strict=True) if is_variance(tensor.name)
            ]
        for begin, end in self._variances[run.start]:
            first, last = max(begin, segment.first), min(end, segment.last)
            held = bytes(piece[max(0, first - segment.first) * width : max(0, last - segment.first) * width])
            signs = held[width - 1 :: width]
            for place in (place for place, sign in enumerate(signs) if sign & 128):
                value = held[place * width : (place + 1) * width]
                if any(value[:-1]) or value[-1] != 128:  # zero has a sign, too
                    tensor, element = run.tensor_at(first + place)
                    raise CheckpointError(
                        f"tensor {tensor.name!r}, element {element}: the result is a variance below zero, and the model would say nothing "
                        f"but NaN. Nothing was published; {without_variances([tensor.name])}, or lower the weights"
                    )

    def _copy(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        """Take the tensor from the first model that has it; rows of a vocabulary are in that model's dtype, not yet the output's."""
        width = DTYPES[segment.run.dtype].itemsize
        for block in segment.blocks():
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
                        from paramdelta_dist.kernels.compiled import add_deltas

                        add_deltas(Values(target, segment.run.dtype), Values(data, source.dtype), [], [])
                elif data != target:
                    differing = next(place for place, (one, other) in enumerate(zip(data, target, strict=True)) if one != other)
                    tensor, _ = segment.run.tensor_at(block.first + differing // width)
                    raise CheckpointError(
                        f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                        "values than the base; it must agree in all models, or be left out (`exclude`), which takes the base's"
                    )
            assert copied, f"{segment.run.tensors[0].name} is of no model"


def inputs_of(
    segment: Segment, settings: Settings, sources: Sequence[Values | None]
) -> tuple[Values | None, list[tuple[Values, Values | None]]]:
    """The base and the (post, base) pairs of a segment, of what the models have there."""

    def required(model: int) -> Values:
        found = sources[model]
        assert found is not None, f"{segment.run.tensors[0].name} of model {model} was not planned"
        return found

    base = required(0) if settings.based else None
    return base, [(required(term.post), None if term.base is None else required(term.base)) for term in settings.terms]


def subject_of(run: Run, settings: Settings, statistics: tuple[Any, ...]) -> Subject:
    """What a method is told of the tensor of a run."""
    tensor = run.tensors[0]
    values, numbers = tuple(term.values for term in settings.terms), tuple(term.number for term in settings.terms)
    return Subject(tensor.twin or tensor.name, tensor.shape, settings.parameters, values, numbers, statistics)


def _values(fetched: FetchedTile, segment: Segment, model: int) -> Values | None:
    data, source = fetched.source(segment, model), segment.run.sources[model]
    return None if data is None or source is None else Values(data, source.dtype)
