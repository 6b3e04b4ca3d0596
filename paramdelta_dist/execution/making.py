"""What is done to a tile once its bytes are there: merge, copy, and refuse what would be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.errors import CheckpointError, NonFinite
from paramdelta_dist.execution.reader import FetchedTile
from paramdelta_dist.kernels.device import DeviceMerger
from paramdelta_dist.kernels.merging import Merger, view
from paramdelta_dist.methods import Method
from paramdelta_dist.planning.plan import Term
from paramdelta_dist.planning.runs import Run
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.storage import StorageConfig, redact


@dataclass(frozen=True)
class Job:
    """What all shards of a merge have in common: everything a worker needs besides the shard."""

    method: Method
    models: tuple[str, ...]
    terms: tuple[Term, ...]
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


class TileMaker:
    """Makes the output bytes of tiles, in the caller's memory. Keeps its scratch between them; one a thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        method, weights, device = job.method, [term.weight for term in job.terms], torch.device(job.device)
        self._merger: Merger | DeviceMerger = (
            Merger(method.function, weights, method.scratch, device)
            if job.device == "cpu"
            else DeviceMerger(method.function, weights, method.scratch, device, fused=method.fused)
        )

    def make(self, fetched: FetchedTile, out: memoryview) -> int:
        """Fill `out` with the tile. Returns how many elements are NaN or infinite, where the recipe lets them through.

        Raises NonFinite where it does not, CheckpointError where copied tensors disagree.
        """
        nonfinite = position = 0
        for segment in fetched.tile.segments:
            size = (segment.last - segment.first) * DTYPES[segment.run.dtype].itemsize
            piece = out[position : position + size]
            position += size
            if segment.run.merged:
                nonfinite += self._merge(fetched, segment, piece)
            else:
                self._copy(fetched, segment, piece)
        return nonfinite

    def _merge(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> int:
        sources = [self._values(fetched, segment, model) for model in range(len(self._job.models))]
        base = _required(sources, 0, segment.run)
        deltas = [(_required(sources, term.post, segment.run), _required(sources, term.base, segment.run)) for term in self._job.terms]
        count, first = self._merger.merge(view(piece, _torch_dtype(segment.run.dtype)), base, deltas)
        if count and not self._job.allow_nonfinite:
            raise NonFinite(self._nonfinite_message(segment, first, sources))
        return count

    def _nonfinite_message(self, segment: Segment, place: int, sources: Sequence[torch.Tensor | None]) -> str:
        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not torch.isfinite(values[place])
        ]
        tensor, element = segment.run.tensor_at(segment.first + place)
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"the sum is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _copy(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        """Take the tensor from the first model that has it; rows of a vocabulary are in that model's dtype, not yet the output's."""
        width = DTYPES[segment.run.dtype].itemsize
        copied = False
        for model, url in enumerate(self._job.models):
            data, source = fetched.source(segment, model), segment.run.sources[model]
            if data is None or source is None:
                continue
            if not copied:
                copied = True
                if source.dtype == segment.run.dtype:
                    piece[:] = data
                else:
                    view(piece, _torch_dtype(segment.run.dtype)).copy_(view(data, _torch_dtype(source.dtype)))
            elif data != piece:
                differing = next(place for place, (one, other) in enumerate(zip(data, piece, strict=True)) if one != other)
                tensor, _ = segment.run.tensor_at(segment.first + differing // width)
                raise CheckpointError(
                    f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                    "values than the base; it must agree in all models"
                )
        assert copied, f"{segment.run.tensors[0].name} is of no model"

    def _values(self, fetched: FetchedTile, segment: Segment, model: int) -> torch.Tensor | None:
        data, source = fetched.source(segment, model), segment.run.sources[model]
        return None if data is None or source is None else view(data, _torch_dtype(source.dtype))


def _required(sources: Sequence[torch.Tensor | None], model: int, run: Run) -> torch.Tensor:
    found = sources[model]
    assert found is not None, f"{run.tensors[0].name} of model {model} was not planned"
    return found


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, DTYPES[name].torch)
    assert isinstance(dtype, torch.dtype)
    return dtype
