"""Whether rounding to a quantised scheme leaves anything of the deltas: the size of the deltas beside the steps of the scheme, on a sample.

Where the step between neighbouring numbers is several times as large as what is added, most of it is lost, and the rest is noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.checkpoint.components import locate
from paramdelta_dist.kernels.codecs.steps import steps_at
from paramdelta_dist.kernels.measure import widened
from paramdelta_dist.planning.plan import MergePlan, Shard
from paramdelta_dist.planning.spans import Span, find_spans
from paramdelta_dist.planning.tiles import Segment, Tile
from paramdelta_dist.shards.inputs import Decoder, inputs_of
from paramdelta_dist.shards.reader import FetchedTile, open_reader

EACH = 12
"""Bands of rows that are read of each component."""
LEAST = 0.3
"""rms δ / rms step below which rounding decides what comes out."""


class Rounding(NamedTuple):
    """The deltas of one component beside the steps of the scheme that they are rounded to."""

    component: str
    tensors: int
    """That are quantised."""
    elements: int
    """That were looked at."""
    delta: float
    """rms of the weighted sum of deltas."""
    step: float
    """rms of the distance between neighbouring numbers."""

    @property
    def ratio(self) -> float:
        return self.delta / self.step if self.step else math.inf

    def as_document(self) -> dict[str, Any]:
        return {**self._asdict(), "ratio": self.ratio}


class _Place(NamedTuple):
    shard: Shard
    span: Span


def measure_rounding(plan: MergePlan) -> tuple[Rounding, ...]:
    """One for each component that is written in a quantised scheme; reads some bands of rows of each, all over the model. Raises what the
    stores raise."""
    found: dict[str, list[_Place]] = {}
    for shard in plan.shards:
        for span in find_spans(shard) if any(tensor.encoded is not None for tensor in shard.tensors) else ():
            if span.encoded is not None and span.merged:
                found.setdefault(locate(span.parts[0].tensor.name).component.value, []).append(_Place(shard, span))
    return tuple(_of(plan, component, places) for component, places in found.items())


def rounding_notes(measured: tuple[Rounding, ...]) -> Iterator[str]:
    """A sentence for each component of whose deltas rounding leaves little."""
    for each in measured:
        if each.ratio < LEAST:
            yield (
                f"{each.component}: the deltas are {each.ratio:.2f} times the step of the scheme that the base is quantised in (rms of "
                f"{each.elements:,} sampled elements), so that rounding decides what is written; `quantization: none` keeps them"
            )


def _of(plan: MergePlan, component: str, places: list[_Place]) -> Rounding:
    count = min(EACH, len(places))
    chosen = [places[number * len(places) // count] for number in range(count)]
    elements, deltas, steps = 0, 0.0, 0.0
    for shard, span in chosen:
        size = min(span.block, span.elements)
        first = (span.elements - size) // 2 // span.cut * span.cut
        segment = Segment(span, first, min(first + size, span.elements))
        delta, step = _looked_at(plan, shard, segment)
        elements += len(delta)
        deltas += float(np.square(delta).sum())
        steps += float(np.square(step).sum())
    return Rounding(component, len(places), elements, math.sqrt(deltas / max(1, elements)), math.sqrt(steps / max(1, elements)))


def _looked_at(plan: MergePlan, shard: Shard, segment: Segment) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weighted sum of the deltas of a segment, and the steps at the base's numbers."""
    span, call, decoder = segment.span, shard.calls[segment.span.call], Decoder()
    most = max(source.room(segment.last - segment.first) for source in span.sources if source is not None)
    with open_reader(shard, plan.models, plan.recipe.storage_config, tile_size=most) as reader:
        fetching = reader.start(Tile(0, 0, (segment,)))
        fetched: FetchedTile = fetching.result()
        numbers = [decoder.numbers(fetched, segment, model) for model in range(len(plan.models))]
        _, terms = inputs_of(segment, call, numbers, shard.adapters)
        total = np.zeros(segment.last - segment.first)
        for (post, old), term in zip(terms, call.terms, strict=True):
            weight = term.values.get("weight")
            total += (1.0 if weight is None else float(weight)) * (widened(post) - (0 if old is None else widened(old)))
        base, part = numbers[0], span.parts[0]
        assert base is not None
        assert span.encoded is not None
        first = part.first + segment.first
        steps = steps_at(span.encoded.encoding, fetched.arrays(segment, 0), part.tensor.shape, first, first + len(total), widened(base))
        fetched.parts.clear()
        reader.release(fetching)
    return total, steps
