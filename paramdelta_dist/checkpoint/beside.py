"""Unknown files of a model's folder, beside its weights and the side files that are known: which of them go along with a merge, and
which stay behind for which reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paramdelta_dist.checkpoint.alike import Stretch, are_alike
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.sidefiles import MAX_SIDE_FILE, is_model_file, is_tokenizer_file
from paramdelta_dist.checkpoint.standins import require_own_files
from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.sizes import format_size
from paramdelta_dist.storage import NO_FILE, Identity, Store

FEW = 5
"""Files that a note names."""
MOST_FILES = 256
"""Unknown files that go along."""
MAX_WEIGHTS_BESIDE = 16 << 30
"""Largest file of weights beside the model that is copied, in bytes: it is never whole in memory."""

_CARD = "readme.md"
"""The name, in small letters, of what an output has of its own."""
_LEFT = (
    (re.compile(r"(model|consolidated|pytorch_model|diffusion_pytorch_model)([-._][^/]*)?\.safetensors|.*\.safetensors\.index\.json"),
     "other weights of the model"),
    (re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite|pkl|pickle|npz|mlmodel|engine|pdparams|index\.json|nemo|zip|tar|gz)"
                r"|(.*/)?(onnx|openvino|coreml|original|gguf|metal|tensorrt)/.*"),
     "weights in another format"),
    (re.compile(r"(.*/)?(checkpoint-\d+|global_step\d+|runs|wandb|logs|__pycache__)/.*|(.*/)?(optimizer|scheduler|rng_state|trainer_state"
                r"|training_args|events\.out\.tfevents)[^/]*|.*\.(log|distcp)|latest"),
     "left by a training"),
    (re.compile(r".*\.(lock|tmp|incomplete|part|partial)|.*~"), "not finished"),
)  # fmt: skip
_SPEAKABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]{1,200}")


def most_bytes(name: str) -> int:
    """The most bytes that a file beside the weights may have."""
    return MAX_WEIGHTS_BESIDE if name.endswith(".safetensors") else MAX_SIDE_FILE


@dataclass(frozen=True, slots=True)
class Beside:
    """Files that no list of ours knows."""

    files: Mapping[str, Identity]
    """Those that go along where the model is the base."""
    left: tuple[tuple[str, str], ...]
    """Name and reason of those that stay behind."""


def is_of_the_folder(name: str) -> bool:
    """Whether a file is of the folder and not of the model: hidden files, and the card, which an output has of its own."""
    return name.lower() == _CARD or any(part.startswith(".") for part in name.split("/"))


def why_left(name: str, size: int) -> str | None:
    """Why a file does not go along; None where it does."""
    reason = next((reason for pattern, reason in _LEFT if pattern.fullmatch(name)), None)
    if reason is None and not all(_SPEAKABLE.fullmatch(part) and len(part.encode()) <= 200 for part in name.split("/")):
        reason = "has a name that not every store can hold"
    if reason is None and size > most_bytes(name):
        reason = f"has {format_size(size)}, more than the {format_size(most_bytes(name))} that are copied"
    return reason


def find_beside(store: Store, others: Mapping[str, Identity]) -> Beside:
    """The unknown files of a folder: those that go along, and those that do not. Looks into those that could be pointers to a file."""
    files: dict[str, Identity] = {}
    left: list[tuple[str, str]] = []
    for name, identity in sorted(others.items(), key=lambda item: (not item[0].endswith(".safetensors"), item[0].count("/"), item[0])):
        if is_of_the_folder(name):
            continue
        reason = why_left(name, identity.size)
        if reason is None and identity == NO_FILE:
            reason = "no file of this folder: a link out of it, or none that can be read"
        if reason is None and len(files) == MOST_FILES:
            reason = f"one of more than {MOST_FILES} files"
        if reason is None:
            try:
                require_own_files(store, {name: identity})
            except ParamDeltaError as error:
                reason = str(error).partition(f"{name}: ")[2] or str(error)
        if reason is None:
            files[name] = identity
        else:
            left.append((name, reason))
    return Beside(files, tuple(left))


class Folder(NamedTuple):
    """Of one model, what is said of the files that are no weights of it."""

    url: str
    """As messages show it."""
    store: Store
    known: Mapping[str, Identity]
    """Side files that are known to belong to a model."""
    others: Mapping[str, Identity]
    """Whatever else lies in the folder."""


def notes_beside(base: Folder, beside: Beside, others: Sequence[Folder], written: Folder) -> Iterator[str]:
    """Notes about such files: of the base, of the other models, and of the folder whose tokenizer is `written`. Looks into weights
    beside the model, in some places of large ones."""
    yield from _weights_beside(base, beside, others)
    if code := [name for name in (*base.known, *beside.files) if name.endswith(".py")]:
        yield f"{base.url}: code goes along from the base, and is run by who loads the model with trust_remote_code: {_some(code)}"
    if beside.left:
        yield f"{base.url}: stays behind: {_some(beside.left)}"
    if kept := [name for name in base.known if is_tokenizer_file(name) and name not in written.known]:
        yield f"{base.url}: stays behind, for the tokenizer is that of {written.url}, which has no file of this name: {_some(kept)}"
    for folder in others:
        lacking = [name for name in folder.known if is_model_file(name) and name not in base.known]
        lacking += [
            name
            for name, identity in folder.others.items()
            if name not in beside.files and not is_of_the_folder(name) and why_left(name, identity.size) is None
        ]
        if lacking:
            yield f"{folder.url}: stays behind, for such files are taken from the base, which has none of this name: {_some(lacking)}"


def _weights_beside(base: Folder, beside: Beside, others: Sequence[Folder]) -> Iterator[str]:
    weights = [name for name in beside.files if name.endswith(".safetensors")]
    if not weights:
        return
    differing = {
        folder.url: [name for name in weights if name in folder.others and not _is_alike(base, folder, name)]
        for folder in others
        if folder.url != base.url
    }
    yield f"{base.url}: weights beside the model are copied as they are, and not merged: {_some(weights)}"
    for url, names in differing.items():
        if names:
            yield f"{url}: has others than the base in weights beside the model, and no part in what is written there: {_some(names)}"


def _is_alike(base: Folder, other: Folder, name: str) -> bool:
    ours, theirs = base.others[name], other.others[name]
    if theirs == NO_FILE:
        return True
    return are_alike(Stretch(base.store, name, ours, 0, ours.size), Stretch(other.store, name, theirs, 0, theirs.size))


def _some(names: Sequence[str | tuple[str, str]]) -> str:
    """The first names, each with its reason where it has one, and how many more there are."""
    told = [
        shown(name) if isinstance(name, str) else f"{shown(name[0])} ({''.join(filter(str.isprintable, name[1]))[:100]})"
        for name in names[:FEW]
    ]
    return ", ".join(told) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
