"""Building a plan: every decision about a merge, made from headers without any I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint, Tensor
from paramdelta_dist.checkpoint.beside import most_bytes
from paramdelta_dist.checkpoint.config import changed_config
from paramdelta_dist.checkpoint.dtypes import DTYPES, ITEMSIZES, Kind
from paramdelta_dist.checkpoint.exact import treatment
from paramdelta_dist.checkpoint.extras import not_in_all, the_bases
from paramdelta_dist.checkpoint.families import has_encoded
from paramdelta_dist.checkpoint.header import Encoded, Stacked, shown
from paramdelta_dist.checkpoint.one_head import ties_of
from paramdelta_dist.checkpoint.plain_config import fields_of_quantisation, is_of_quantisation
from paramdelta_dist.checkpoint.quantised import find_quantised, left_over
from paramdelta_dist.checkpoint.sidefiles import is_model_file, is_tokenizer_file
from paramdelta_dist.errors import CheckpointError, UsageError
from paramdelta_dist.kernels.encodings import Scaled, Space
from paramdelta_dist.methods import Scope
from paramdelta_dist.planning.fingerprint import fingerprint, located
from paramdelta_dist.planning.layout import OutputTensor, ShardLayout, lay_out
from paramdelta_dist.planning.names import require_writable
from paramdelta_dist.planning.plan import InputFile, MergePlan, Shard, SideFile, TensorPlan
from paramdelta_dist.planning.resolve import MethodCall, Resolver
from paramdelta_dist.planning.row_map import RowMap
from paramdelta_dist.planning.shared import Shared
from paramdelta_dist.planning.sources import Source, Stack
from paramdelta_dist.planning.vocabulary_rows import Vocabularies, VocabularyPlanner, row_counts
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.rules import Selection
from paramdelta_dist.sizes import format_size
from paramdelta_dist.storage import Identity, redact


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
    every = [checkpoints[url].tensors for url in recipe.models if checkpoints[url].space is Space.WEIGHT]
    lacked = not_in_all(every)
    derived = frozenset(the_bases(base.tensors))
    alone = derived.union(lacked, () if selection.is_all else (name for name in base.tensors if not selection.has(name)))
    kinds = _account(opened, kept, alone, derived)
    twins = ties_of(base, [checkpoints[url] for url in recipe.models[1:]])
    merged_names = [name for name, is_merged in kinds.items() if (is_merged or name in kept) and name not in lacked and name not in twins]
    others = frozenset().union(*{id(tensors): tensors for tensors in every}.values()).difference(merged_names)
    calls, call_of = resolver.choose(merged_names, others)
    if twins:
        call_of = {name: call_of[twins.get(name, name)] for name in kinds if twins.get(name, name) in call_of}
    _require_one_reduction_of_the_model(calls)
    planner = VocabularyPlanner(recipe, models, opened, vocabularies or {})
    maps, dimensions = planner.row_maps(calls, call_of), planner.dimensions
    layouts = lay_out(
        _outputs(base.tensors, kinds, recipe.dtype, maps, dimensions, keeps=recipe.quantization == "keep", merged=call_of),
        shard_size=recipe.shard_size,
        companions=base.companions,
    )
    decoded = recipe.quantization == "none" and has_encoded(base.tensors)
    ours = {
        (base.url, name): i for name, i in base.side_files.items() if is_model_file(name) and not (decoded and is_of_quantisation(name))
    }
    theirs = {(recipe.tokenizer_url, name): i for name, i in tokenizer_files.items() if is_tokenizer_file(name)}
    beside = {(base.url, name): i for name, i in base.beside.files.items()}
    side_files = tuple(SideFile(url, name, identity) for (url, name), identity in {**ours, **theirs, **beside}.items())
    _require_copyable(side_files)
    written = [*((file.model, file.name) for file in side_files), *((base.url, companion.file) for companion in base.companions.values())]
    require_writable(recipe.output, dict.fromkeys(written))
    alone = alone.union(kept)
    if twins:
        alone = frozenset(name for name in base.tensors if twins.get(name, name) in alone)
    inputs = {url: {f.name: (f.identity.size, f.identity.tag) for f in checkpoints[url].files} for url in models}
    merged = len(call_of)
    changes = row_counts(opened, maps, dimensions) | dict(ids or {})
    without: tuple[str, ...] = ()
    if decoded:
        without = fields_of_quantisation(base.config)
    elif not kept:
        without = left_over(base.tensors, base.config)
    dtype = recipe.dtype or (plain_dtype(base.tensors) if decoded else None)
    changed_config(base.config, dtype, changes)  # what cannot be written is refused here
    locations = recipe.storage_config.locations(dict.fromkeys([*models, *(file.model for file in side_files)]))
    counted = {id(model.tensors): _encodings(model) for model in {id(model.tensors): model for model in opened}.values()}
    encodings = [counted[id(model.tensors)] for model in opened]
    unlocated = fingerprint(recipe, models, calls, call_of, inputs, side_files, maps, changes, twins, without, encodings)
    shared = Shared()
    return MergePlan(
        recipe=recipe,
        models=models,
        calls=calls,
        shards=tuple(_shard(layout, opened, kinds, calls, call_of, maps, dimensions, alone, twins, shared) for layout in layouts),
        fingerprint=located(unlocated, {redact(url): location for url, location in locations.items()}),
        unlocated=unlocated,
        locations=locations,
        inputs=inputs,
        side_files=side_files,
        merged=merged,
        copied=len(kinds) - merged,
        config_changes=changes,
        config_without=without,
        config_dtype=dtype,
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


def _require_one_reduction_of_the_model(calls: Sequence[MethodCall]) -> None:
    """Raise UsageError where a method looks at the whole model, and at each tensor in another call."""
    if len(calls) > 1 and any(reduction.scope is Scope.MODEL for call in calls for reduction in call.reductions):
        raise UsageError(
            f"{calls[0].method} looks at the whole model before it merges a tensor, so its parameters cannot differ between tensors: "
            "give each one value, or choose what it looks at tensor by tensor"
        )


def _account(models: Sequence[Checkpoint], kept: Collection[str], alone: Collection[str], derived: Collection[str]) -> dict[str, bool]:
    """For every tensor of the base, whether it is merged (True) or copied (False); nothing else is possible. What is quantised in
    the base and left out by the recipe is `kept` as it is, byte for byte; of what is copied from the base `alone`, what the others
    hold does not matter, and what is `derived` from the config or counts steps is merged in no case."""
    base, problems, merged = models[0], [], {}
    seen: dict[tuple[str | None, ...], bool | str] = {}
    """What is to be done with tensors that have these dtypes in the models, or why nothing can be."""
    tables = {id(model.tensors): model.tensors for model in models}.values()
    columns = [[None if tensor is None else tensor.dtype for tensor in map(table.get, base.tensors)] for table in tables]
    for name, dtypes in zip(base.tensors, zip(*columns, strict=True), strict=True):
        if name in kept and dtypes[0] in ITEMSIZES:
            merged[name] = False
            continue
        if name in alone:
            dtypes = dtypes[:1]
            if dtypes[0] in ITEMSIZES and DTYPES[dtypes[0]].kind is Kind.COMPLEX:
                merged[name] = False
                continue
        if (found := seen.get(dtypes)) is None:
            found = seen[dtypes] = treatment({DTYPES[dtype].kind for dtype in dtypes if dtype is not None})
        if isinstance(found, str):
            problems.append(f"{shown(name)} {found}")
        else:
            merged[name] = found and name not in derived
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"{redact(base.url)}: {len(problems)} tensors cannot be merged\n  - " + "\n  - ".join(problems[:20]) + more)
    return merged


def _outputs(
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, bool],
    dtype: str | None,
    maps: Mapping[str, RowMap],
    dimensions: Mapping[str, int],
    *,
    keeps: bool,
    merged: Collection[str],
) -> Iterator[OutputTensor]:
    """The tensors as they will be written, those that hold floating-point numbers in `dtype` where it is given; what is encoded in
    the base as the base has it where it `keeps` that."""
    for name, tensor in tensors.items():
        held, shape, _, start, stop, encoded = tensor
        if keeps and encoded is not None:
            yield from _encoded_outputs(name, tensor, is_merged=name in merged, is_mapped=name in maps)
            continue
        written = dtype if dtype is not None and kinds[name] else held
        if name in maps:
            shape = tuple(maps[name].rows if d == dimensions[name] else size for d, size in enumerate(shape))
        elif written == held and encoded is None:
            yield OutputTensor(name, held, shape, stop - start)
            continue
        yield OutputTensor(name, written, shape, DTYPES[written].nbytes(shape))


def _encoded_outputs(name: str, tensor: Tensor, *, is_merged: bool, is_mapped: bool) -> Iterator[OutputTensor]:
    """The arrays of a tensor of the base: codes with their scales where it is merged, each by itself where it is copied."""
    encoded = tensor.encoded
    assert isinstance(encoded, Encoded), f"{name}: the base is its own layout"
    copied = encoded.arrays
    if is_merged:
        if not isinstance(encoded.encoding, Scaled) or is_mapped:
            raise CheckpointError(
                f"{shown(name)} is quantised and has a row for each token, and the vocabularies differ: its rows cannot be put in another "
                "order as they are; `quantization: none` writes plain numbers"
            )
        codes, copied = encoded.arrays[:2], encoded.arrays[2:]
        size = sum([array.tensor.nbytes for array in codes])
        yield OutputTensor(name, encoded.encoding.numbers, tensor.shape, size, encoded.encoding, codes)
    for array in copied:
        counted = tensor.parameters if array is encoded.arrays[0] else 0
        yield OutputTensor(array.name, array.tensor.dtype, array.tensor.shape, array.tensor.nbytes, array_of=name, counted=counted)


def _encodings(model: Checkpoint) -> list[tuple[str, int]]:
    """Every encoding of a model, and how many tensors have it."""
    if not has_encoded(model.tensors):
        return []
    shared = Counter([id(encoded.encoding) if type(encoded) is Encoded else 0 for *_, encoded in model.tensors.values() if encoded])
    kinds = {id(t.encoded.encoding): t.encoded.encoding for t in model.tensors.values() if type(t.encoded) is Encoded}
    counts: dict[Any, int] = {}
    for address, count in shared.items():
        kind = kinds[address] if address else "stacked"
        counts[kind] = counts.get(kind, 0) + count
    return sorted((repr(kind), count) for kind, count in counts.items())


def plain_dtype(tensors: Mapping[str, Tensor]) -> str | None:
    """The dtype in which the first encoded tensor would be written as plain numbers; None where there is none."""
    return next((tensor.dtype for tensor in tensors.values() if tensor.encoded is not None), None)


def _shard(
    layout: ShardLayout,
    models: Sequence[Checkpoint],
    kinds: Mapping[str, bool],
    calls: tuple[MethodCall, ...],
    call_of: Mapping[str, int],
    maps: Mapping[str, RowMap],
    dimensions: Mapping[str, int],
    alone: Collection[str],
    twins: Mapping[str, str],
    shared: Shared,
) -> Shard:
    names = [tensor.array_of or tensor.name for tensor in layout.tensors]
    chosen = [None if tensor.array_of else call_of.get(tensor.name) for tensor in layout.tensors]
    used, everyone, base = [call.models for call in calls], frozenset(range(len(models))), frozenset({0})
    with_base = [of_call | base for of_call in used]
    adapters = frozenset(position for position, model in enumerate(models) if model.space is Space.DELTA)

    def readers(output: OutputTensor, call: int | None) -> frozenset[int]:
        """The models that are read for a tensor."""
        name = output.name
        if output.array_of:
            return base
        if name in maps:
            return everyone
        if call is None:
            return base if kinds[name] or name in alone else everyone.difference(adapters)
        if adapters:
            return _read_with_adapters(calls[call], name, models, adapters).union(base if output.encoding else ())
        return with_base[call] if output.encoding else used[call]

    needed = [readers(output, call) for output, call in zip(layout.tensors, chosen, strict=True)]
    inputs: list[InputFile] = []
    columns: list[list[Source | Stack | None]] = []
    last: list[Tensor | None] = []
    for position, model in enumerate(models):
        held = [tensor if position in readers else None for tensor, readers in zip(map(model.tensors.get, names), needed, strict=True)]
        if position == 0:
            held = [_array(tensor, output) if output.array_of else tensor for tensor, output in zip(held, layout.tensors, strict=True)]
        files = _files(held)
        places = {file: place for place, file in enumerate(files, len(inputs))}
        inputs += [InputFile(position, model.files[file]) for file in files]
        if columns and held == last:  # models with the same headers: what was found out of one is true of the next
            further = len(files)
            columns.append([None if source is None else _moved(source, further) for source in columns[-1]])
        else:
            columns.append([None if tensor is None else _source(tensor, places, shared) for tensor in held])
        last = held
    plans, offset = [], len(layout.header)
    for output, call, sources in zip(layout.tensors, chosen, zip(*columns, strict=True), strict=True):
        name, dtype, shape, nbytes, encoding, arrays, _, counted = output
        elements, rows = math.prod(shape), maps.get(name)
        encoded = None
        if encoding is not None:
            if not encoding.rows and any(isinstance(source, Stack) for source in sources):
                raise CheckpointError(
                    f"{shown(name)} has one scale for all experts in the base, and a model keeps them apart: `quantization: none` writes "
                    "plain numbers"
                )
            encoded = shared.output(name, encoding, arrays)
        twin = twins.get(name, "")
        plan = TensorPlan(
            name, call is not None, dtype, shape, elements, offset, nbytes, call or 0, sources, rows, twin=twin, encoded=encoded,
            parameters=elements if counted is None else counted,
        )  # fmt: skip
        if rows is not None:
            dimension = dimensions[name]
            heights = tuple([model.tensors[name].shape[dimension] for model in models])
            plan = plan._replace(outer=math.prod(shape[:dimension]), heights=heights)
        plans.append(plan)
        offset += nbytes
    return Shard(layout.file, layout.header, layout.size, tuple(plans), tuple(inputs), calls, adapters)


def _read_with_adapters(call: MethodCall, name: str, models: Sequence[Checkpoint], adapters: Collection[int]) -> frozenset[int]:
    """The models that are read for a tensor: an adapter holds its delta, or nothing, or a tensor that takes the place of the base's."""
    read = {0} if call.based else set()
    for term in call.terms:
        tensor = models[term.post].tensors.get(name)
        if term.post in adapters and (tensor is None or tensor.space is Space.DELTA):
            read |= set() if tensor is None else {term.post}
        else:
            read |= {term.post} if term.base is None else {term.post, term.base}
    return frozenset(read)


def _array(tensor: Tensor | None, output: OutputTensor) -> Tensor | None:
    """The array of an encoded tensor that is copied as such."""
    assert tensor is not None
    assert tensor.encoded is not None
    return next(array.tensor for array in tensor.encoded.arrays if array.name == output.name)


def _files(tensors: Iterable[Tensor | None]) -> dict[int, None]:
    """The files of a model that some of its tensors lie in, in the order in which they are met."""
    files: dict[int, None] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.encoded is None:
            files[tensor.file] = None
        elif isinstance(tensor.encoded, Stacked):
            files |= _files([array.tensor for array in tensor.encoded.arrays])
        else:
            for array in tensor.encoded.arrays:
                files[array.tensor.file] = None
    return files


def _source(tensor: Tensor, places: Mapping[int, int], shared: Shared) -> Source | Stack:
    encoded = tensor.encoded
    if encoded is None:
        return Source(places[tensor.file], tensor.start, tensor.dtype)
    if isinstance(encoded, Stacked):
        pieces = [_source(array.tensor, places, shared) for array in encoded.arrays]
        ends = tuple(accumulate(array.tensor.parameters for array in encoded.arrays))
        return Stack(tuple([piece for piece in pieces if isinstance(piece, Source)]), ends)
    return Source(places[tensor.file], tensor.start, encoded.encoding.numbers, shared.place(tensor, encoded, places))


def _moved(source: Source | Stack, files: int) -> Source | Stack:
    """The same place in a model whose files come so much later among the inputs."""
    if isinstance(source, Stack):
        return source._replace(pieces=tuple([piece._replace(file=piece.file + files) for piece in source.pieces]))
    file, start, dtype, encoded = source
    return Source(file + files, start, dtype, encoded)
