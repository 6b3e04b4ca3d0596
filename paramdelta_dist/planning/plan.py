"""The plan: everything a merge will do, decided from headers. A pure value; making one does no I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import product
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint import Checkpoint, Tensor, WeightFile
from paramdelta_dist.checkpoint.beside import most_bytes
from paramdelta_dist.checkpoint.config import changed_config
from paramdelta_dist.checkpoint.dtypes import DTYPES, ITEMSIZES, Kind
from paramdelta_dist.checkpoint.exact import treatment
from paramdelta_dist.checkpoint.extras import is_the_bases, not_in_all
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.quantised import find_quantised, left_over
from paramdelta_dist.checkpoint.rules import Selection
from paramdelta_dist.checkpoint.sidefiles import is_model_file, is_tokenizer_file
from paramdelta_dist.checkpoint.tied import ties_of
from paramdelta_dist.errors import CheckpointError, UsageError
from paramdelta_dist.methods import Scope, find_method
from paramdelta_dist.planning.layout import OutputTensor, ShardLayout, lay_out
from paramdelta_dist.planning.names import require_writable
from paramdelta_dist.planning.rows import RowMap
from paramdelta_dist.planning.settings import Resolver, Settings, Term
from paramdelta_dist.planning.vocabulary import Vocabularies, VocabularyPlanner, row_counts
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.sizes import format_size
from paramdelta_dist.storage import Identity, redact

FORMAT = 2
"""Version of what a plan's bytes mean; part of the fingerprint, raised when the output of an equal recipe changes."""


class Source(NamedTuple):
    """Where one model keeps the bytes of one tensor."""

    file: int
    """Position in `Shard.inputs`."""
    start: int
    dtype: str


class TensorPlan(NamedTuple):
    """What happens to one tensor of the output."""

    name: str
    merged: bool
    """Whether it is computed; else it is copied from the first source, and every other one must hold the same bytes."""
    dtype: str
    """Of the output."""
    shape: tuple[int, ...]
    elements: int
    start: int
    """First byte in the output file."""
    nbytes: int
    settings: int
    """Position in `Shard.settings` of how it is computed; means nothing where it is copied."""
    sources: tuple[Source | None, ...]
    """One for each model, the merge's base first; None for a model that is not read for this tensor."""
    rows: RowMap | None = None
    """How its rows are made up where the vocabularies differ: then `merged` speaks of none of them, and `sources` has
    the place of the whole tensor in every model."""
    first: int = 0
    """Element of the tensor with which this part of it begins."""
    outer: int = 1
    """How often the rows come one after the other: more than once where a dimension before theirs has several entries."""
    heights: tuple[int, ...] = ()
    """How many rows each model has, where they are made up from those of several."""
    twin: str = ""
    """The tensor that this is a copy of, where it is one: it is computed as if it had that name."""


def parts_of(tensors: Iterable[TensorPlan]) -> Iterator[TensorPlan]:
    """The tensors, those with a row map as the parts they are made of, in the order of their bytes: each part is
    merged or copied like any tensor, from places of its own."""
    for tensor in tensors:
        if tensor.rows is None:
            yield tensor
            continue
        width = tensor.elements // (tensor.rows.rows * tensor.outer)
        strides = [width * DTYPES[source.dtype].itemsize if source else 0 for source in tensor.sources]
        stride = width * DTYPES[tensor.dtype].itemsize
        for turn, run in product(range(tensor.outer), tensor.rows.runs()):
            sources: list[Source | None] = []
            for taken in run.sources:
                held = None if taken is None else tensor.sources[taken[0]]
                if held is None or taken is None:
                    sources.append(None)
                else:
                    row = taken[1] + (turn * tensor.heights[taken[0]] if turn else 0)
                    sources.append(held._replace(start=held.start + row * strides[taken[0]]))
            first = turn * tensor.rows.rows + run.first
            start, size = tensor.start + first * stride, run.rows * stride
            elements = run.rows * width
            yield tensor._replace(
                merged=run.merged,
                elements=elements,
                start=start,
                nbytes=size,
                sources=tuple(sources),
                rows=None,
                first=first * width,
            )


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
    settings: tuple[Settings, ...]
    """Every way in which a tensor of the merge is computed."""

    @property
    def bytes_to_read(self) -> int:
        total = 0
        for tensor in parts_of(self.tensors):
            for source in tensor.sources:
                if source is not None:
                    total += tensor.elements * DTYPES[source.dtype].bits // 8
        return total


@dataclass(frozen=True)
class MergePlan:
    """A merge, decided. Frozen; a shard of it travels to a worker, the whole stays with the driver."""

    recipe: Recipe
    models: tuple[str, ...]
    """URLs, the merge's base first. Those that no weight makes necessary are left out."""
    settings: tuple[Settings, ...]
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
    notes: tuple[str, ...] = ()
    """What was noted while the models were compared."""
    companions: frozenset[str] = frozenset()
    """Files among the shards that lie beside the model, and in no index."""
    planning_memory: int = 0
    """Bytes that what the models say of themselves took, at most, while the plan was made from it."""

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
        first = {term.number: term for settings in reversed(self.settings) for term in settings.terms}
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
        return sum(tensor.elements for shard in self.own_shards for tensor in shard.tensors)

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


def build_plan(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    tokenizer_files: Mapping[str, Identity],
    vocabularies: Vocabularies | None = None,
    ids: Mapping[str, Any] | None = None,
    *,
    models: Sequence[str] | None = None,
) -> MergePlan:
    """The plan for models that are homologous (`compare(...).require()` has passed).

    `checkpoints` holds one for each of `recipe.models`, by URL; `tokenizer_files` are the side files of the folder at
    `recipe.tokenizer_url`, `vocabularies` what `vocab: by-token` needs: of each model and of that folder; `ids` are
    the fields of the config that hold ids of tokens and become others, by dotted name.
    `models` are opened and read even where no weight makes them necessary, in this order; the base is the first. Raises
    CheckpointError listing every tensor that can be neither merged nor copied, UsageError when the base has no config.json, and
    what `row_maps` does.
    """
    base = checkpoints[recipe.base]
    if base.config is None:
        raise UsageError(
            f"{redact(base.url)} has no config.json; the output would not be a model that loads: copy that of a model of the same "
            "architecture into it"
        )
    resolver = Resolver(recipe, base.tensors, models)
    models = resolver.models
    opened = [checkpoints[url] for url in models]
    selection = Selection(recipe.include, recipe.exclude)
    kept = {name for found in find_quantised(base.tensors, base.config) for name in found.tensors if not selection.has(name)}
    every = [checkpoints[url].tensors for url in recipe.models]
    lacked = not_in_all(every)
    kinds = _account(opened, selection, kept, lacked)
    twins = ties_of(base, [checkpoints[url] for url in recipe.models[1:]])
    merged_names = [name for name, is_merged in kinds.items() if (is_merged or name in kept) and name not in lacked and name not in twins]
    others = {name for tensors in every for name in tensors}.difference(merged_names)
    settings, ways = resolver.choose(merged_names, others)
    ways = {name: ways[twins.get(name, name)] for name in kinds if twins.get(name, name) in ways}
    _require_one_way_of_looking(settings)
    planner = VocabularyPlanner(recipe, models, opened, vocabularies or {})
    maps, dimensions = planner.row_maps(settings, ways), planner.dimensions
    layouts = lay_out(
        _outputs(base.tensors, kinds, recipe.dtype, maps, dimensions), shard_size=recipe.shard_size, companions=base.companions
    )
    ours = {(base.url, name): i for name, i in base.side_files.items() if is_model_file(name)}
    theirs = {(recipe.tokenizer_url, name): i for name, i in tokenizer_files.items() if is_tokenizer_file(name)}
    beside = {(base.url, name): i for name, i in base.beside.files.items()}
    side_files = tuple(SideFile(url, name, identity) for (url, name), identity in {**ours, **theirs, **beside}.items())
    _require_copyable(side_files)
    written = [*((file.model, file.name) for file in side_files), *((base.url, companion.file) for companion in base.companions.values())]
    require_writable(recipe.output, dict.fromkeys(written))
    alone = {name for name, tensor in base.tensors.items() if name in kept or _base_alone(name, tensor, selection, lacked)}
    alone = {name for name in base.tensors if twins.get(name, name) in alone}
    inputs = {url: {f.name: (f.identity.size, f.identity.tag) for f in checkpoints[url].files} for url in models}
    merged = len(ways)
    changes = row_counts(opened, maps, dimensions) | dict(ids or {})
    without = () if kept else left_over(base.tensors, base.config)
    changed_config(base.config, recipe.dtype, changes)  # what cannot be written is refused here
    locations = recipe.storage_config.locations(dict.fromkeys([*models, *(file.model for file in side_files)]))
    unlocated = _fingerprint(recipe, models, settings, ways, inputs, side_files, maps, changes, twins, without)
    return MergePlan(
        recipe=recipe,
        models=models,
        settings=settings,
        shards=tuple(_shard(layout, opened, kinds, settings, ways, maps, dimensions, alone, twins) for layout in layouts),
        fingerprint=located(unlocated, {redact(url): location for url, location in locations.items()}),
        unlocated=unlocated,
        locations=locations,
        inputs=inputs,
        side_files=side_files,
        merged=merged,
        copied=len(kinds) - merged,
        config_changes=changes,
        config_without=without,
        companions=frozenset(companion.file for companion in base.companions.values()),
    )


def _require_copyable(side_files: Sequence[SideFile]) -> None:
    """Raise CheckpointError for a side file that is none."""
    for file in side_files:
        if file.identity.size > most_bytes(file.name):
            raise CheckpointError(
                f"{redact(file.model)}: {shown(file.name)} would be copied beside the weights and has {format_size(file.identity.size)}, "
                f"more than the {format_size(most_bytes(file.name))} such a file may have; take it out of the folder"
            )


def located(fingerprint: str, locations: Mapping[str, Mapping[str, str]]) -> str:
    """The fingerprint of a merge whose inputs live where `locations` say, by redacted URL; `fingerprint` itself where they say nothing.

    Two stores may hold other bytes under the same names, sizes and tags: not every store makes tags of bytes.
    """
    if not locations:
        return fingerprint
    text = json.dumps([fingerprint, locations], sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _require_one_way_of_looking(settings: Sequence[Settings]) -> None:
    """Raise UsageError where a method looks at the whole model, and at each tensor in another way."""
    if len(settings) > 1 and any(sweep.scope is Scope.MODEL for way in settings for sweep in way.sweeps):
        raise UsageError(
            f"{settings[0].method} looks at the whole model before it merges a tensor, so its parameters cannot differ between tensors: "
            "give each one value, or choose what it looks at tensor by tensor"
        )


def _account(models: Sequence[Checkpoint], selection: Selection, kept: Collection[str], lacked: Collection[str]) -> dict[str, bool]:
    """For every tensor of the base, whether it is merged (True) or copied (False); nothing else is possible. What is quantised in
    the base and left out by the recipe is `kept` as it is, byte for byte; of what else is left out, is `lacked` by a model or
    follows from the config, the base alone matters."""
    base, problems, merged = models[0], [], {}
    seen: dict[tuple[str | None, ...], bool | str] = {}
    """What is to be done with tensors that have these dtypes in the models, or why nothing can be."""
    columns = [[None if tensor is None else tensor.dtype for tensor in map(model.tensors.get, base.tensors)] for model in models]
    for name, dtypes in zip(base.tensors, zip(*columns, strict=True), strict=True):
        if name in kept and dtypes[0] in ITEMSIZES:
            merged[name] = False
            continue
        if _base_alone(name, base.tensors[name], selection, lacked):
            dtypes = dtypes[:1]
            if dtypes[0] in ITEMSIZES and DTYPES[dtypes[0]].kind is Kind.COMPLEX:
                merged[name] = False
                continue
        if (found := seen.get(dtypes)) is None:
            found = seen[dtypes] = treatment({DTYPES[dtype].kind for dtype in dtypes if dtype is not None})
        if isinstance(found, str):
            problems.append(f"{shown(name)} {found}")
        else:
            merged[name] = found and not is_the_bases(name, base.tensors[name])
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"{redact(base.url)}: {len(problems)} tensors cannot be merged\n  - " + "\n  - ".join(problems[:20]) + more)
    return merged


def _base_alone(name: str, tensor: Tensor, selection: Selection, lacked: Collection[str]) -> bool:
    """Whether a tensor is copied from the base whatever the other models have."""
    return name in lacked or not selection.has(name) or is_the_bases(name, tensor)


def _outputs(
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, bool],
    dtype: str | None,
    maps: Mapping[str, RowMap],
    dimensions: Mapping[str, int],
) -> Iterator[OutputTensor]:
    """The tensors as they will be written, those that hold floating-point numbers in `dtype` where it is given."""
    for name, (held, shape, _, start, stop) in tensors.items():
        written = dtype if dtype is not None and kinds[name] else held
        if name in maps:
            shape = tuple(maps[name].rows if d == dimensions[name] else size for d, size in enumerate(shape))
        elif written == held:
            yield OutputTensor(name, held, shape, stop - start)
            continue
        yield OutputTensor(name, written, shape, DTYPES[written].nbytes(shape))


def _shard(
    layout: ShardLayout,
    models: Sequence[Checkpoint],
    kinds: Mapping[str, bool],
    settings: tuple[Settings, ...],
    ways: Mapping[str, int],
    maps: Mapping[str, RowMap],
    dimensions: Mapping[str, int],
    alone: Collection[str],
    twins: Mapping[str, str],
) -> Shard:
    names = [tensor.name for tensor in layout.tensors]
    chosen = [ways.get(name) for name in names]
    used, everyone = [way.models for way in settings], frozenset(range(len(models)))

    def readers(name: str) -> frozenset[int]:
        """The models that are read for a tensor that is not merged as a whole."""
        if name in maps:
            return everyone
        return frozenset({0}) if kinds[name] or name in alone else everyone

    needed = [readers(name) if way is None or name in maps else used[way] for name, way in zip(names, chosen, strict=True)]
    inputs: list[InputFile] = []
    columns = []
    for position, model in enumerate(models):
        held = [tensor if position in readers else None for tensor, readers in zip(map(model.tensors.get, names), needed, strict=True)]
        files = dict.fromkeys(tensor.file for tensor in held if tensor is not None)
        places = {file: place for place, file in enumerate(files, len(inputs))}
        inputs += [InputFile(position, model.files[file]) for file in files]
        columns.append([None if tensor is None else Source(places[tensor.file], tensor.start, tensor.dtype) for tensor in held])
    plans, offset = [], len(layout.header)
    for (name, dtype, shape, nbytes), way, sources in zip(layout.tensors, chosen, zip(*columns, strict=True), strict=True):
        elements, rows = math.prod(shape), maps.get(name)
        twin = twins.get(name, "")
        plan = TensorPlan(name, way is not None, dtype, shape, elements, offset, nbytes, way or 0, sources, rows, twin=twin)
        if rows is not None:
            dimension = dimensions[name]
            heights = tuple([model.tensors[name].shape[dimension] for model in models])
            plan = plan._replace(outer=math.prod(shape[:dimension]), heights=heights)
        plans.append(plan)
        offset += nbytes
    return Shard(layout.file, layout.header, layout.size, tuple(plans), tuple(inputs), settings)


def _fingerprint(
    recipe: Recipe,
    models: Sequence[str],
    settings: Sequence[Settings],
    ways: Mapping[str, int],
    inputs: Mapping[str, Any],
    side_files: Sequence[SideFile],
    maps: Mapping[str, RowMap],
    changes: Mapping[str, Any],
    twins: Mapping[str, str],
    without: Sequence[str],
) -> str:
    document: dict[str, Any] = {
        "format": FORMAT,
        "method": [recipe.method, find_method(recipe.method).version],
        "settings": [[way.based, way.parameters, [list(term) for term in way.terms]] for way in settings],
        "ways": list(ways.values()) if len(settings) > 1 else [],
        **({"selection": [list(recipe.include), list(recipe.exclude)]} if recipe.include or recipe.exclude else {}),
        **({"missing": recipe.missing} if recipe.missing != "error" else {}),
        **({"accept": sorted(set(recipe.accept))} if recipe.accept else {}),
        **({"vocabulary": [sorted(set(globs)) for globs in recipe.answers]} if any(recipe.answers) else {}),
        "dtype": recipe.dtype,
        "shard_size": recipe.shard_size,
        "allow_nonfinite": recipe.allow_nonfinite,
        "inputs": [[redact(url), inputs[url]] for url in models],
        "side_files": [[redact(file.model), file.name, file.identity.size, file.identity.tag] for file in side_files],
    }
    if without:
        document["config_without"] = list(without)
    if twins and find_method(recipe.method).weights is None:  # a plain sum is the same under any name
        document["twins"] = sorted(twins.items())
    if maps:
        digests = {rows: blake2b(repr(rows.ways).encode() + rows.table, digest_size=20).hexdigest() for rows in set(maps.values())}
        document["rows"] = [[name, rows.rows, digests[rows]] for name, rows in sorted(maps.items())]
    if maps or changes:
        document["config"] = dict(changes)
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return blake2b(text, digest_size=20).hexdigest()
