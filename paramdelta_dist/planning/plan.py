"""The plan: everything a merge will do, decided from headers. A pure value; making one does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint import WeightFile
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.planning.resolve import MethodCall, Term
from paramdelta_dist.planning.row_map import RowMap
from paramdelta_dist.planning.sources import Source, Stack, sources_of
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import Identity, redact

FORMAT = 2
"""Version of what a plan's bytes mean; part of the fingerprint, raised when the output of an equal recipe changes."""


class WrittenArray(NamedTuple):
    """An array that a tensor is written as; its name is told from that of the tensor."""

    cut: int
    """Characters taken off the end of the tensor's name."""
    end: str
    """Text that takes their place."""
    nbytes: int

    @classmethod
    def of(cls, tensor: str, name: str, nbytes: int) -> WrittenArray:
        """The array of this name, of a tensor of that."""
        stem = tensor.rfind(".") + 1
        kept = len(tensor) if name.startswith(tensor) else stem if name.startswith(tensor[:stem]) else 0
        return cls(len(tensor) - kept, name[kept:], nbytes)


class EncodedOutput(NamedTuple):
    """The arrays that a tensor is written as, where its numbers are encoded: codes, and right behind them the scales that these decide.
    Tensors that are written alike share one of these."""

    encoding: Scaled
    arrays: tuple[WrittenArray, ...]


class TensorPlan(NamedTuple):
    """The decision about one tensor of the output."""

    name: str
    merged: bool
    """Whether it is computed; else it is copied from the first source, and every other one must hold the same bytes."""
    dtype: str
    """Of the output; of what is encoded there, that of the numbers before they are."""
    shape: tuple[int, ...]
    elements: int
    start: int
    """First byte in the output file."""
    nbytes: int
    call: int
    """Position in `Shard.calls` of how it is computed; means nothing where it is copied."""
    sources: tuple[Source | Stack | None, ...]
    """One for each model, the merge's base first; None for a model that is not read for this tensor."""
    rows: RowMap | None = None
    """The map of its rows where the vocabularies differ: then `merged` speaks of none of them, and `sources` has
    the place of the whole tensor in every model."""
    outer: int = 1
    """Number of times that the rows come one after the other: more than once where a dimension before theirs has several entries."""
    heights: tuple[int, ...] = ()
    """Rows that each model has, where they are made up from those of several."""
    twin: str = ""
    """The tensor that this is a copy of, where it is one: it is computed as if it had that name."""
    encoded: EncodedOutput | None = None
    """The arrays that it is written as, where it is not written as plain numbers of `dtype`."""
    parameters: int = 0
    """Numbers of the model that it holds: its elements, or none where it is a scale."""

    @property
    def arrays(self) -> Iterator[tuple[str, int, int]]:
        """(name, first byte, bytes) of each array in the output file."""
        if self.encoded is None:
            yield self.name, self.start, self.nbytes
            return
        start = self.start
        for cut, end, nbytes in self.encoded.arrays:
            yield self.name[: len(self.name) - cut] + end, start, nbytes
            start += nbytes


class Part(NamedTuple):
    """Elements [first, first + elements) of one tensor, which are merged or copied alike and lie in one place in every model."""

    tensor: TensorPlan
    first: int
    elements: int
    merged: bool
    sources: tuple[Source | Stack | None, ...]
    """In pieces only where a method looks at more than elements, and so at all pieces together."""

    @property
    def start(self) -> int:
        """First byte in the output file."""
        return self.tensor.start + output_bytes(self.tensor, self.first)

    @property
    def is_last(self) -> bool:
        return self.first + self.elements == self.tensor.elements


def output_bytes(tensor: TensorPlan, elements: int) -> int:
    """Bytes of so many elements of a tensor in the output, without the scales of encoded ones."""
    bits = DTYPES[tensor.dtype].bits if tensor.encoded is None else tensor.encoded.encoding.bits
    return elements * bits // 8


def parts_of(tensors: Iterable[TensorPlan]) -> Iterator[Part]:
    """The tensors as the parts that they are made of, in the order of their bytes: most are one part, those with a row map one for each
    span of rows, and those that some model keeps in pieces one for each stretch that is of one piece in all models."""
    for tensor in tensors:
        if tensor.rows is not None:
            yield from _parts_by_rows(tensor, tensor.rows)
        elif Stack in map(type, tensor.sources):
            yield from _parts_by_pieces(tensor)
        else:
            yield Part(tensor, 0, tensor.elements, tensor.merged, tensor.sources)


def _parts_by_rows(tensor: TensorPlan, rows: RowMap) -> Iterator[Part]:
    width = tensor.elements // (rows.rows * tensor.outer)
    for turn, span in product(range(tensor.outer), rows.spans()):
        sources: list[Source | None] = []
        for taken in span.sources:
            held = None if taken is None else tensor.sources[taken[0]]
            if held is None or taken is None:
                sources.append(None)
            else:
                assert isinstance(held, Source), f"{tensor.name} has rows in another order, and pieces"
                sources.append(held.at((taken[1] + (turn * tensor.heights[taken[0]] if turn else 0)) * width))
        yield Part(tensor, (turn * rows.rows + span.first) * width, span.rows * width, span.merged, tuple(sources))


def _parts_by_pieces(tensor: TensorPlan) -> Iterator[Part]:
    first = 0
    while first < tensor.elements:
        last = tensor.elements
        sources: list[Source | None] = []
        for source in tensor.sources:
            if isinstance(source, Stack):
                piece, end = source.piece_at(first)
                last = min(last, end)
                sources.append(piece)
            else:
                sources.append(None if source is None else source.at(first))
        yield Part(tensor, first, last - first, tensor.merged, tuple(sources))
        first = last


class SideFile(NamedTuple):
    """A small file that is copied beside the weights, pinned to the identity it had when the plan was made."""

    model: str
    """URL."""
    name: str
    identity: Identity


class InputFile(NamedTuple):
    """A file that shards read, pinned to the identity it had when the plan was made."""

    model: int
    file: WeightFile


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file and all that is needed to make it: the unit of scheduling, retry and resume."""

    file: str
    header: bytes
    size: int
    tensors: tuple[TensorPlan, ...]
    inputs: tuple[InputFile, ...]
    calls: tuple[MethodCall, ...]
    """Every way in which a tensor of the merge is computed."""
    adapters: frozenset[int] = frozenset()
    """Models that hold deltas: what one of them lacks is a delta of zero."""

    @property
    def bytes_to_read(self) -> int:
        total = 0
        known: dict[tuple[int, int], int] = {}
        """Of sources that are encoded alike, by the address of what they share."""
        for part in parts_of(self.tensors):
            is_whole = part.sources is part.tensor.sources
            for source in part.sources:
                if source is None:
                    continue
                if isinstance(source, Stack):
                    total += source.nbytes(part.elements)
                elif source.encoded is None:
                    total += part.elements * DTYPES[source.dtype].bits // 8
                elif not is_whole:
                    total += source.nbytes(part.elements)
                else:
                    key = id(source.encoded), part.elements
                    if key not in known:
                        known[key] = source.nbytes(part.elements)
                    total += known[key]
        return total


@dataclass(frozen=True)
class MergePlan:
    """A merge, decided. Frozen; a shard of it travels to a worker, the whole stays with the driver."""

    recipe: Recipe
    models: tuple[str, ...]
    """URLs, the merge's base first. Those that no weight makes necessary are left out."""
    calls: tuple[MethodCall, ...]
    """Every way in which a tensor is computed, the first tensor's first."""
    shards: tuple[Shard, ...]
    fingerprint: str
    """Of all that decides the output's bytes, and where what it is made from lives: equal fingerprints, equal bytes."""
    unlocated: str
    """The fingerprint without where the inputs live, by which outputs were known when that did not count."""
    locations: Mapping[str, Mapping[str, str]]
    """What the recipe's storage settings say of where the inputs live, by URL; empty where they leave that to the environment."""
    inputs: dict[str, dict[str, tuple[int, str]]]
    """Size and tag of every file that is read, by model and name."""
    side_files: tuple[SideFile, ...]
    """Every file that is copied beside the weights."""
    merged: int
    """Tensors that are computed."""
    copied: int
    """Tensors taken from the base because they hold integers, booleans or buffers, or the recipe leaves them out."""
    config_changes: Mapping[str, Any]
    """Fields of config.json, by dotted name, that are not the base's because the vocabulary is not."""
    config_without: tuple[str, ...] = ()
    """Fields of config.json, by dotted name, that are true of the base and not of what is written."""
    config_dtype: str | None = None
    """The dtype that config.json is to say; None where it says what the base's does."""
    notes: tuple[str, ...] = ()
    """Notes of the comparison of the models."""
    companions: frozenset[str] = frozenset()
    """Files among the shards that lie beside the model, and in no index."""
    planning_memory: int = 0
    """Bytes that what the models say of themselves took, at most, while the plan was made from it."""

    @cached_property
    def is_encoded(self) -> bool:
        """Whether any numbers, in an input or in the output, are stored otherwise than as they are."""
        return any(
            tensor.encoded is not None or any(source.encoded is not None for source in sources_of(tensor.sources))
            for shard in self.shards
            for tensor in shard.tensors
        )

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Bytes to read for each shard."""
        return tuple(shard.bytes_to_read for shard in self.shards)

    @property
    def bytes_to_read(self) -> int:
        return sum(self.reads)

    @cached_property
    def bytes_to_write(self) -> int:
        return sum(shard.size for shard in self.shards)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Every delta or model that takes part for some tensor, once, in recipe order."""
        first = {term.position: term for call in reversed(self.calls) for term in call.terms}
        return tuple(first[number] for number in sorted(first))

    @cached_property
    def own_shards(self) -> tuple[Shard, ...]:
        """Those that make up the model, without what lies beside it."""
        return tuple(shard for shard in self.shards if shard.file not in self.companions)

    @cached_property
    def total_size(self) -> int:
        """Bytes of the model's tensor data."""
        return sum(tensor.nbytes for shard in self.own_shards for tensor in shard.tensors)

    @cached_property
    def total_parameters(self) -> int:
        return sum(tensor.parameters for shard in self.own_shards for tensor in shard.tensors)

    def as_document(self) -> dict[str, Any]:
        """The plan as plain values, without the tensors' places: what is kept beside the output."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe.as_document(),
            "inputs": {redact(url): {name: list(i) for name, i in files.items()} for url, files in self.inputs.items()},
            "locations": {redact(url): dict(location) for url, location in self.locations.items()},
            "side_files": [[redact(file.model), file.name, file.identity.size, file.identity.tag] for file in self.side_files],
            "shards": [
                {"file": shard.file, "size": shard.size, "tensors": len(shard.tensors), "read": read}
                for shard, read in zip(self.shards, self.reads, strict=True)
            ],
            "tensors": {"merged": self.merged, "copied": self.copied},
            **({"config": dict(self.config_changes)} if self.config_changes else {}),
            "total_size": self.total_size,
            "total_parameters": self.total_parameters,
        }
