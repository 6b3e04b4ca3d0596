"""Weights beside the model that every model of a merge has alike: they are merged as the model's own are, into files of the same names.

Inside, such a tensor is called FILE:NAME, which rules match; in its file it keeps its name. What has another meaning than numbers to
be added stays out: adapters, whose factors count only multiplied, and what is not floating point.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from paramdelta_dist.checkpoint.beside import Beside
from paramdelta_dist.checkpoint.checkpoint import Checkpoint, Companion, read_header
from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import Tensor, WeightFile
from paramdelta_dist.checkpoint.parsing import Parser
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import NO_FILE, StorageConfig, open_store

_ADAPTER = re.compile(r"(.*/)?adapter_model[^/]*\.safetensors|.*lora[^/]*\.safetensors", re.IGNORECASE)
_FACTOR = re.compile(r".*\b(lora|lokr|loha|ia3|dora|vera|oft)_.*", re.IGNORECASE)


def with_companions(models: Mapping[str, Checkpoint], base: str, storage: StorageConfig, room: Room) -> dict[str, Checkpoint]:
    """The models of a merge, by URL, with the tensors of every file beside the `base` that all of them have with equal names and
    shapes. Such files are then no longer `beside` or among the `others`. Raises OverBudget where there is no room for their headers."""
    found, parser = dict(models), Parser(room)
    for file in [name for name in models[base].beside.files if name.endswith(".safetensors") and not _ADAPTER.fullmatch(name)]:
        whole = {url: model for url, model in found.items() if not model.adapter}
        if any(file not in model.others or model.others[file] == NO_FILE for model in whole.values()):
            continue
        held = {url: _tensors(model, file, storage, parser) for url, model in whole.items()}
        if _are_alike(list(held.values())) and not any(
            f"{file}:{name}" in model.tensors for model in found.values() for name in held[base]
        ):
            found |= {url: _joined(model, file, held[url]) for url, model in whole.items()}
    return found


def _tensors(model: Checkpoint, file: str, storage: StorageConfig, parser: Parser) -> dict[str, Tensor]:
    """The tensors of a file beside a model; none where that is no safetensors file."""
    store, weights = open_store(model.url, storage), WeightFile(file, model.others[file])
    try:
        text = read_header(store, weights, parser.room)
    except CheckpointError:
        return {}
    try:
        return parser.header(text, file_size=weights.identity.size, where=f"{store.url}/{file}", file=len(model.files))
    except CheckpointError:
        return {}
    finally:
        parser.room.give_back(len(text))


def _are_alike(models: Sequence[Mapping[str, Tensor]]) -> bool:
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in models]
    plain = all(DTYPES[tensor.dtype].kind is Kind.FLOAT for tensors in models for tensor in tensors.values())
    return plain and bool(shapes[0]) and all(each == shapes[0] for each in shapes) and not any(map(_FACTOR.fullmatch, shapes[0]))


def _joined(model: Checkpoint, file: str, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return replace(
        model,
        files=(*model.files, WeightFile(file, model.others[file])),
        tensors=Tensors(model.tensors | {f"{file}:{name}": tensor for name, tensor in tensors.items()}),
        others={name: identity for name, identity in model.others.items() if name != file},
        beside=Beside({name: identity for name, identity in model.beside.files.items() if name != file}, model.beside.left),
        companions={**model.companions, **{f"{file}:{name}": Companion(file, name) for name in tensors}},
    )


def companions_noted(base: Checkpoint, url: str) -> Iterator[str]:
    """Notes about the weights beside the model that are merged."""
    if files := sorted({companion.file for companion in base.companions.values()}):
        yield f"{url}: weights beside the model that all models have alike are merged too: {', '.join(map(repr, files))}"
