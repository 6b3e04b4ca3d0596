"""Computes the output bytes of one tile: a weighted sum, a copy, or a method block by block; refuses what would be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.extras import is_variance, without_variances
from paramdelta_dist.errors import CheckpointError, NonFinite
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.methods import Reduction, find_method
from paramdelta_dist.output.hold import Hold
from paramdelta_dist.planning.plan import EncodedOutput, Part, Shard
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.sources import Source
from paramdelta_dist.planning.spans import Span
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.probe import Probe
from paramdelta_dist.shards.reader import FetchedTile
from paramdelta_dist.storage import StorageConfig, redact

if TYPE_CHECKING:
    from paramdelta_dist.kernels.codecs.encode import Stored
    from paramdelta_dist.shards.torch_compute import TorchComputer
from paramdelta_dist.shards.inputs import Decoder, inputs_of
from paramdelta_dist.shards.whole_scale import WHOLE_SCALE, Found, look, scale_for

WORTH_COMPILING = 1 << 20
"""Elements of a tensor from which on codes are merged in one pass: that is several times as fast, gives the same bytes, and takes
some 20 seconds to compile on a machine that never did."""


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


class Outcome(NamedTuple):
    """The outcome of making a tile, besides its bytes."""

    nonfinite: int
    """Elements that are NaN or infinite, where the recipe lets them through."""
    scales: tuple[Scales, ...] = ()
    """In the order of the tile's segments."""


class Scales(NamedTuple):
    """The scales of some of a tensor's codes."""

    tensor: int
    """First byte of the tensor in the output file."""
    first: int
    """Element of the tensor with which the codes begin."""
    data: bytes


class TileComputer:
    """Computes tiles into the caller's memory, and the partials of reductions over tiles. Keeps its scratch between them; each
    thread has one of its own."""

    def __init__(self, job: MergeContext, shard: Shard) -> None:
        self._job, self._calls, self._adapters = job, shard.calls, shard.adapters
        self._torch: TorchComputer | None = None
        self._decoder = Decoder()
        self._zeros = b""
        self._variances: dict[int, list[tuple[int, int]]] = {}
        """Elements of a span, by its start, that are variances."""

    def make(self, fetched: FetchedTile, out: memoryview, statistics: tuple[Any, ...] | None = None) -> Outcome:
        """Fill `out` with the tile, but for the scales that are collected from several.

        `statistics` are those of the tile's streamed tensor, if it has a part of one. Raises NonFinite where the recipe
        lets nothing through, CheckpointError where copied tensors disagree, or numbers do not fit the scale that they must have.
        """
        self._decoder.forget()
        nonfinite = position = 0
        scales: list[Scales] = []
        for segment in fetched.tile.segments:
            span = segment.span
            size = span.output_bytes(segment.last) - span.output_bytes(segment.first)
            piece = out[position : position + size]
            position += size
            if span.trails:
                continue
            if not span.merged:
                self._copy(fetched, segment, piece)
                continue
            whole = span.reductions == 0 or (segment.first, segment.last) == (0, span.elements)
            if span.encoded is None:
                count, first = self._fill(fetched, segment, piece, None if whole else statistics)
            else:
                count, first, made = self._encode(fetched, segment, piece, span.encoded, None if whole else statistics)
                part = span.parts[0]
                scales.append(Scales(part.tensor.start, part.first + segment.first, made))
            if count and not self._job.allow_nonfinite:
                wrong = Segment(span, segment.first + first, segment.first + first + 1)
                raise NonFinite(self._nonfinite_message(wrong, 0, self._sources(fetched, wrong)))
            nonfinite += count
            if span.encoded is None:
                self._require_variances(segment, piece)
        return Outcome(nonfinite, tuple(scales))

    def reduce(self, fetched: FetchedTile, segment: Segment, reduction: Reduction, statistics: tuple[Any, ...]) -> list[Any]:
        """The partials of a segment's blocks, in order; a single one where they may be added up as they come."""
        self._decoder.forget()
        if reduction is WHOLE_SCALE:
            return [self._look(fetched, segment, statistics)]
        return self._with_torch().reduce(segment, partial(self._sources, fetched), self._calls[segment.span.call], reduction, statistics)

    def _sources(self, fetched: FetchedTile, part: Segment) -> list[RawElements | None]:
        """The numbers, in each model, of a part of a tile; of an encoded one valid until those of the next part are asked for."""
        return [self._decoder.numbers(fetched, part, model) for model in range(len(self._job.models))]

    def _with_torch(self) -> TorchComputer:
        if self._torch is None:
            from paramdelta_dist.shards.torch_compute import TorchComputer

            self._torch = TorchComputer(self._job.device, self._job.statistics, self._adapters)
        return self._torch

    def _fill(self, fetched: FetchedTile, segment: Segment, piece: memoryview, statistics: tuple[Any, ...] | None) -> tuple[int, int]:
        """Plain numbers. Returns how many elements are not finite, and the place of the first."""
        width = DTYPES[segment.span.dtype].itemsize

        def out_of(block: Segment) -> RawElements:
            return RawElements(piece[(block.first - segment.first) * width : (block.last - segment.first) * width], segment.span.dtype)

        count = first = 0
        for block, more, place in self._blocks(fetched, segment, out_of, statistics):
            first = block.first - segment.first + place if more and not count else first
            count += more
        return count, first

    def _encode(
        self, fetched: FetchedTile, segment: Segment, piece: memoryview, output: EncodedOutput, statistics: tuple[Any, ...] | None
    ) -> tuple[int, int, bytes]:
        """Codes, block by block. Returns how many elements are not finite, the place of the first, and the scales."""
        from paramdelta_dist.kernels.codecs.encode import encode

        span, encoding = segment.span, output.encoding
        if not encoding.rows:
            return self._encode_by_one_scale(fetched, segment, piece, output, statistics)
        if self._is_of_one_scheme(span, output):
            return self._merge_codes(fetched, segment, piece, output)
        part = span.parts[0]
        shape, scales, out_of = part.tensor.shape, bytearray(), self._out_of(span)
        count = first = 0
        for block, more, place in self._blocks(fetched, segment, out_of, statistics):
            first = block.first - segment.first + place if more and not count else first
            count += more
            start, stop = part.first + block.first, part.first + block.last
            _, (above, below), *_ = encoding.ranges(shape, start, stop)
            made = self._decoder.room("scales", below - above)
            codes = piece[span.output_bytes(block.first) - span.output_bytes(segment.first) :][
                : span.output_bytes(block.last) - span.output_bytes(block.first)
            ]
            outcome = encode(
                encoding, out_of(block).data, shape, start, stop, self._stored(fetched, block, 0), self._others(fetched, block, output),
                codes, made,
            )  # fmt: skip
            if outcome.misfit is not None:
                raise CheckpointError(self._misfit_message(part, outcome.misfit, outcome.factor))
            scales += made
        return count, first, bytes(scales)

    def _is_of_one_scheme(self, span: Span, output: EncodedOutput) -> bool:
        """Whether the result is a plain sum of what is stored, in every model, as it will be in the output."""
        part, call = span.parts[0], self._calls[span.call]
        if span.elements < WORTH_COMPILING or self._job.device != "cpu" or find_method(call.method).weights is None:
            return False
        wanted = (output.encoding, part.tensor.shape, part.first)
        held = [span.sources[model] for model in call.models | {0}]
        return all(isinstance(source, Source) and source.encoded is not None and source.encoded[:3] == wanted for source in held)

    def _merge_codes(self, fetched: FetchedTile, segment: Segment, piece: memoryview, output: EncodedOutput) -> tuple[int, int, bytes]:
        """`_encode` in one pass, from codes to codes."""
        from paramdelta_dist.kernels.codecs.merge import merge_scaled

        span, encoding = segment.span, output.encoding
        part, call = span.parts[0], self._calls[span.call]
        weights = find_method(call.method).weights
        assert weights is not None
        factors = weights(call.parameters, [term.values for term in call.terms])
        shape, scales = part.tensor.shape, bytearray()
        count = first = 0
        for block in segment.blocks():
            start, stop = part.first + block.first, part.first + block.last
            _, (above, below), *_ = encoding.ranges(shape, start, stop)
            made = self._decoder.room("scales", below - above)
            codes = piece[span.output_bytes(block.first) - span.output_bytes(segment.first) :][
                : span.output_bytes(block.last - block.first)
            ]
            deltas = []
            for term in call.terms:
                assert term.base is not None, f"{call.method}: a sum of deltas has a term without a base"
                deltas.append((fetched.arrays(block, term.post), fetched.arrays(block, term.base)))
            merged = merge_scaled(encoding, shape, start, stop, fetched.arrays(block, 0), deltas, factors, codes, made)
            if merged.outcome.misfit is not None:
                raise CheckpointError(self._misfit_message(part, merged.outcome.misfit, merged.outcome.factor))
            first = block.first - segment.first + merged.place if merged.nonfinite and not count else first
            count += merged.nonfinite
            scales += made
        return count, first, bytes(scales)

    def _out_of(self, span: Span) -> Callable[[Segment], RawElements]:
        """Memory for the numbers of a block before they are encoded."""
        width = DTYPES[span.dtype].itemsize
        return lambda block: RawElements(self._decoder.room("made", (block.last - block.first) * width), span.dtype)

    def _look(self, fetched: FetchedTile, segment: Segment, statistics: tuple[Any, ...] | None) -> Found:
        """What has to be known of a segment's results for the one scale of their tensor."""
        output, out_of = segment.span.encoded, self._out_of(segment.span)
        assert output is not None
        found: Found | None = None
        for block, _, _ in self._blocks(fetched, segment, out_of, statistics):
            stored = [self._stored(fetched, block, 0), *self._others(fetched, block, output)]
            more = look(out_of(block).data, [each.numbers for each in stored], segment.span.dtype)
            found = more if found is None else WHOLE_SCALE.combine(found, more)
        assert found is not None
        return found

    def _encode_by_one_scale(
        self, fetched: FetchedTile, segment: Segment, piece: memoryview, output: EncodedOutput, statistics: tuple[Any, ...] | None
    ) -> tuple[int, int, bytes]:
        """`_encode` where a scale is for all of the tensor; `statistics` end with what is known of all of its results."""
        from paramdelta_dist.kernels.codecs.encode import Stored, encode

        encoding, out_of = output.encoding, self._out_of(segment.span)
        known: Found = self._look(fetched, segment, None) if statistics is None else statistics[-1]
        of_method = None if statistics is None else statistics[:-1]
        count = first = 0
        scale = b""
        for block, more, place in self._blocks(fetched, segment, out_of, of_method):
            first = block.first - segment.first + place if more and not count else first
            count += more
            stored = [self._stored(fetched, block, 0), *self._others(fetched, block, output)]
            codes = piece[block.first - segment.first : block.last - segment.first]
            if True in known.same:
                same = next((place for place, is_same in enumerate(known.same) if is_same and place), 0)  # of a post, else of the base
                held = stored[same].arrays
                codes[:], scale = held[0], bytes(held[1])
                continue
            scale = scale_for(known.peak, bytes(stored[0].arrays[1]), encoding)
            unlike = self._decoder.room("unlike", len(out_of(block).data))
            unlike[:] = b"\xff" * len(unlike)  # NaN: the codes of the base mean other numbers by another scale
            kept = Stored((stored[0].arrays[0], memoryview(scale), *stored[0].arrays[2:]), unlike)
            row = (1, block.last - block.first)  # any run of elements is a row of its own where one scale is for all
            encode(encoding, out_of(block).data, row, 0, row[1], kept, [], codes, self._decoder.room("scales", len(scale)))
        return count, first, scale if segment.first == 0 else b""

    def _blocks(
        self,
        fetched: FetchedTile,
        segment: Segment,
        out_of: Callable[[Segment], RawElements],
        statistics: tuple[Any, ...] | None,
    ) -> Iterator[tuple[Segment, int, int]]:
        """Fill the memory that `out_of` gives for parts of a segment. Yields each part, with the number of its elements that are not finite
        and the place of the first in it."""
        call = self._calls[segment.span.call]
        if find_method(call.method).weights is None:
            yield from self._with_torch().apply(segment, out_of, call, partial(self._sources, fetched), statistics)
            return
        for block in (segment,) if segment.span.is_plain else segment.blocks():
            yield block, *self._sum(block, out_of(block), call, self._sources(fetched, block))

    def _sum(self, segment: Segment, out: RawElements, call: MethodCall, sources: Sequence[RawElements | None]) -> tuple[int, int]:
        """The fast path: a sum of weighted deltas. Returns how many elements are not finite, and the place of the first."""
        method = find_method(call.method)
        assert method.weights is not None
        weights = tuple(method.weights(call.parameters, [term.values for term in call.terms]))
        base, terms = inputs_of(segment, call, sources, self._adapters)
        assert base is not None
        pairs = [(post, self._nothing_like(post) if old is None else old) for post, old in terms]
        if self._job.device != "cpu":
            return self._with_torch().sum(out, base, pairs, weights)
        from paramdelta_dist.kernels.sum_cpu import add_deltas  # here: numba and torch are a lot of memory, and few need both

        return add_deltas(out, base, pairs, weights)

    def _nothing_like(self, delta: RawElements) -> RawElements:
        """As many zeros: what is subtracted from a delta, which is a difference already."""
        if len(self._zeros) < len(delta.data):
            self._zeros = bytes(len(delta.data))
        return RawElements(memoryview(self._zeros)[: len(delta.data)], delta.dtype)

    def _stored(self, fetched: FetchedTile, block: Segment, model: int) -> Stored:
        """The arrays and the numbers of a block in a model that has the output's encoding."""
        from paramdelta_dist.kernels.codecs.encode import Stored

        numbers = self._decoder.numbers(fetched, block, model)
        assert numbers is not None, f"{block.span.parts[0].tensor.name} of model {model} was not planned"
        return Stored(fetched.arrays(block, model), numbers.data)

    def _others(self, fetched: FetchedTile, block: Segment, output: EncodedOutput) -> list[Stored]:
        """The posts whose codes and scales could stand in the output as they are: those with its encoding and its blocks."""
        part, found = block.span.parts[0], []
        for model in dict.fromkeys(term.post for term in self._calls[block.span.call].terms):
            source = block.span.sources[model]
            held = None if not isinstance(source, Source) or model == 0 else source.encoded
            if held is None or held.encoding != output.encoding:
                continue
            if output.encoding.aligned(part.tensor.shape, part.first, held.shape, held.first):
                found.append(self._stored(fetched, block, model))
        return found

    def _misfit_message(self, part: Part, element: int, factor: float) -> str:
        return (
            f"tensor {part.tensor.name!r}, element {element}: the result is {factor:.3g} times as large as the base's scale "
            "for the whole tensor can express. Nothing was published; `quantization: none` in the recipe writes plain numbers"
        )

    def _nonfinite_message(self, segment: Segment, place: int, sources: Sequence[RawElements | None]) -> str:
        from paramdelta_dist.kernels.sum_cpu import is_finite

        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not is_finite(values, place)
        ]
        part, element = segment.span.part_at(segment.first + place)
        tensor = part.tensor
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"it is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _require_variances(self, segment: Segment, piece: memoryview) -> None:
        """Raise CheckpointError for a variance below zero: the root that a model takes of it is NaN, and so is all that it says."""
        span, width = segment.span, DTYPES[segment.span.dtype].itemsize
        if span.start not in self._variances:
            ends = list(accumulate(part.elements for part in span.parts))
            self._variances[span.start] = [
                (end - part.elements, end) for part, end in zip(span.parts, ends, strict=True) if is_variance(part.tensor.name)
            ]
        for begin, end in self._variances[span.start]:
            first, last = max(begin, segment.first), min(end, segment.last)
            held = bytes(piece[max(0, first - segment.first) * width : max(0, last - segment.first) * width])
            signs = held[width - 1 :: width]
            for place in (place for place, sign in enumerate(signs) if sign & 128):
                value = held[place * width : (place + 1) * width]
                if any(value[:-1]) or value[-1] != 128:  # zero has a sign, too
                    part, element = span.part_at(first + place)
                    tensor = part.tensor
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
                numbers = self._decoder.numbers(fetched, block, model)
                if numbers is None:
                    continue
                data = numbers.data
                if not copied:
                    copied = True
                    if numbers.dtype == segment.span.dtype:
                        target[:] = data
                    else:
                        from paramdelta_dist.kernels.sum_cpu import add_deltas

                        add_deltas(RawElements(target, segment.span.dtype), numbers, [], [])
                elif data != target:
                    differing = next(place for place, (one, other) in enumerate(zip(data, target, strict=True)) if one != other)
                    part, _ = segment.span.part_at(block.first + differing // width)
                    tensor = part.tensor
                    raise CheckpointError(
                        f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                        "values than the base; it must agree in all models, or be left out (`exclude`), which takes the base's"
                    )
            assert copied, f"{segment.span.parts[0].tensor.name} is of no model"
