"""Inputs of a segment: the stored elements of its base and terms, and what a method is told of its tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paramdelta_dist.kernels.blocks import TensorInfo
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.spans import Span
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.reader import FetchedTile


def inputs_of(
    segment: Segment, call: MethodCall, sources: Sequence[RawElements | None]
) -> tuple[RawElements | None, list[tuple[RawElements, RawElements | None]]]:
    """The base and the (post, base) pairs of a segment, of what the models have there."""

    def required(model: int) -> RawElements:
        found = sources[model]
        assert found is not None, f"{segment.span.tensors[0].name} of model {model} was not planned"
        return found

    base = required(0) if call.based else None
    return base, [(required(term.post), None if term.base is None else required(term.base)) for term in call.terms]


def info_of(span: Span, call: MethodCall, statistics: tuple[Any, ...]) -> TensorInfo:
    """The information about the tensor of a span that a method is given."""
    tensor = span.tensors[0]
    values, numbers = tuple(term.values for term in call.terms), tuple(term.position for term in call.terms)
    return TensorInfo(tensor.twin or tensor.name, tensor.shape, call.parameters, values, numbers, statistics)


def values(fetched: FetchedTile, segment: Segment, model: int) -> RawElements | None:
    data, source = fetched.source(segment, model), segment.span.sources[model]
    return None if data is None or source is None else RawElements(data, source.dtype)
