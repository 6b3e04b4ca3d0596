"""Inputs of a segment: the numbers of its base and terms, decoded where they are not stored as they are, and what a method is told
of its tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from paramdelta_dist.checkpoint.dtypes import ITEMSIZES
from paramdelta_dist.kernels.blocks import TensorInfo
from paramdelta_dist.kernels.encodings import Space
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.sources import Source
from paramdelta_dist.planning.spans import Span
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.reader import FetchedTile


class Decoder:
    """Gives the numbers of blocks. Keeps the memory that it decodes into; one a thread."""

    def __init__(self) -> None:
        self._memory: dict[Any, memoryview] = {}
        self._decoded: dict[int, tuple[tuple[int, int, int, int], RawElements]] = {}
        """Of each model, which part was decoded last, and its numbers."""

    def room(self, key: Any, size: int) -> memoryview:
        """`size` bytes for one purpose, valid until more are asked for under the same key."""
        held = self._memory.get(key)
        if held is None or len(held) < size:
            self._memory.pop(key, None)
            held = self._memory[key] = memoryview(np.empty(size, np.uint8).data)
        return held[:size]

    def numbers(self, fetched: FetchedTile, segment: Segment, model: int) -> RawElements | None:
        """The numbers of a part of a tile in one model: as stored, or decoded and then valid until the next are asked for of this
        model; None where it is not read."""
        source = segment.span.sources[model]
        if source is None:
            return None
        arrays = fetched.arrays(segment, model)
        if source.is_plain:
            return RawElements(arrays[0], source.dtype)
        key = (id(fetched), segment.span.start, segment.first, segment.last)
        if (held := self._decoded.get(model)) is not None and held[0] == key:
            return held[1]
        width = ITEMSIZES[source.dtype]
        out = self.room(model, (segment.last - segment.first) * width)
        if isinstance(source, Source):
            _decode(source, arrays, segment.first, segment.last, out)
        else:
            for piece, begin, end in source.within(segment.first, segment.last):
                count = len(piece.ranges(0, end - begin))
                part = out[(begin - segment.first) * width : (end - segment.first) * width]
                _bring(piece, arrays[:count], end - begin, RawElements(part, source.dtype))
                arrays = arrays[count:]
        self._decoded[model] = key, RawElements(out, source.dtype)
        return self._decoded[model][1]

    def forget(self) -> None:
        """Of what was decoded; to be called where the memory of a tile may become that of another."""
        self._decoded.clear()


def _decode(source: Source, arrays: Sequence[memoryview], first: int, last: int, out: memoryview) -> None:
    """Elements [first, last) of an encoded source, of which `arrays` has the bytes, as numbers of its dtype."""
    from paramdelta_dist.kernels.codecs.decode import decode  # here: numba takes memory, and plain models have no need of it

    assert source.encoded is not None
    encoding, shape, begin, _ = source.encoded
    decode(encoding, arrays, shape, begin + first, begin + last, out)


def _bring(piece: Source, arrays: Sequence[memoryview], elements: int, out: RawElements) -> None:
    """The first elements of a piece, in the dtype that all pieces are brought to."""
    if piece.is_plain and piece.dtype == out.dtype:
        out.data[:] = arrays[0]
    elif piece.dtype == out.dtype:
        _decode(piece, arrays, 0, elements, out.data)
    else:
        from paramdelta_dist.kernels.sum_cpu import add_deltas

        held = arrays[0]
        if not piece.is_plain:
            held = memoryview(bytearray(elements * ITEMSIZES[piece.dtype]))
            _decode(piece, arrays, 0, elements, held)
        add_deltas(out, RawElements(held, piece.dtype), [], [])


def inputs_of(
    segment: Segment, call: MethodCall, sources: Sequence[RawElements | None], adapters: Collection[int] = ()
) -> tuple[RawElements | None, list[tuple[RawElements, RawElements | None]]]:
    """The base and the (post, base) pairs of a segment, of what the models have there; a post without a base is a delta, or a model that
    is merged as it is. `adapters` are the models that lack what they do not change."""

    def required(model: int) -> RawElements:
        found = sources[model]
        assert found is not None, f"{segment.span.parts[0].tensor.name} of model {model} was not planned"
        return found

    base = required(0) if call.based else None
    terms: list[tuple[RawElements, RawElements | None]] = []
    for term in call.terms:
        source = segment.span.sources[term.post]
        if source is None and term.post in adapters:
            terms.append((_zeros(segment.last - segment.first), None))
        elif term.base is None or (source is not None and source.space is Space.DELTA):
            terms.append((required(term.post), None))
        else:
            terms.append((required(term.post), required(term.base)))
    return base, terms


def _zeros(elements: int) -> RawElements:
    return RawElements(memoryview(bytes(2 * elements)), "BF16")


def info_of(span: Span, call: MethodCall, statistics: tuple[Any, ...]) -> TensorInfo:
    """The information about the tensor of a span that a method is given."""
    tensor = span.parts[0].tensor
    values, numbers = tuple(term.values for term in call.terms), tuple(term.position for term in call.terms)
    return TensorInfo(tensor.twin or tensor.name, tensor.shape, call.parameters, values, numbers, statistics)
