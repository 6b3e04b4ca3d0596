"""Places that are no model folder: what each is, and what to name or do instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NoReturn

from paramdelta_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import Identity, Store, scheme_of
from paramdelta_dist.storage.confined import plain

_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".safetensors", ".json", ".bin", ".gguf", ".pth", ".pt")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")
_PLACES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
        "this is a LoRA adapter, not a whole model; name it as the `adapter` of a delta, in place of `post`, or merge it into its base "
        "first (peft: merge_and_unload) and save that",
    ),
    (
        ("*.gguf",),
        "this is GGUF ({found}), which llama.cpp runs and nothing here reads; merge the safetensors models it was made of, and convert the "
        "result (llama.cpp: convert_hf_to_gguf.py)",
    ),
    (
        ("consolidated*.pth", "consolidated*.pt", "consolidated*.safetensors"),
        "only the weights in their maker's own layout are here ({found}), whose tensors have other names; download the same model's "
        f"{SINGLE_NAME} or {INDEX_NAME}, or convert it once (transformers: the convert_*_weights_to_hf script of its architecture)",
    ),
    (
        _PICKLED,
        "the weights are pickled ({found}), a format that can run code when it is read; convert them once: "
        "AutoModelForCausalLM.from_pretrained(folder, dtype='auto').save_pretrained(new_folder)",
    ),
    (
        ("*.distcp",),
        "this is a checkpoint of torch.distributed ({found}); save it as a Hugging Face model once, with the trainer that wrote it",
    ),
    (
        ("tf_model*.h5", "flax_model*.msgpack", "*.onnx", "weights*.npz"),
        "the weights are in a format of another framework ({found}); merge the same models as safetensors, as save_pretrained writes them",
    ),
)
"""Files that tell what a folder is, and what to do about it; where several match, the first counts."""


def refuse_absent(store: Store, url: str) -> NoReturn:
    """Raise CheckpointError for a place where nothing is."""
    if url.endswith(_FILES):
        raise CheckpointError(f"{store.url}: no such folder, or it is empty; name the folder, not a file in it")
    raise CheckpointError(
        f"{store.url}: no such folder, or it is empty; {'look at how it is written' if scheme_of(url) else _as_an_id(url)}"
    )


def _as_an_id(path: str) -> str:
    """The way out for a path that is not there, which may have been meant as the id of a model on the Hub."""
    given = os.path.relpath(path)
    if _ID.fullmatch(given):
        return f"for the model of this name on the Hugging Face hub write hf://{given}"
    if "/" not in given and not given.startswith(".") and not os.path.exists(path):
        return f"a model of the Hugging Face hub is named with its owner, as hf://OWNER/{given}"
    return "look at how it is written"


def refuse_place(store: Store, present: Mapping[str, Identity]) -> NoReturn:
    """Raise CheckpointError for a folder that holds neither a whole model in one file nor an index, saying what it is."""
    _refuse_cache(store, present)
    for patterns, what in _PLACES[:1]:
        _refuse_if(store, present, patterns, what)
    inner = sorted({name.rpartition("/")[0] for name in present if name.endswith((f"/{SINGLE_NAME}", f"/{INDEX_NAME}"))})
    below = f"; a model is in {_some([f'{store.url}/{folder}' for folder in inner])}: name that folder" if inner else ""
    if "model_index.json" in present:
        none = "; the others have no way here" if inner else "; none of them is a folder that can be merged here"
        raise CheckpointError(f"{store.url}: this is a diffusers pipeline, of whose parts each is a model of its own{below}{none}")
    if "modules.json" in present and inner:
        raise CheckpointError(f"{store.url}: this is a sentence-transformers model without weights of its own{below}")
    for patterns, what in _PLACES:
        _refuse_if(store, present, patterns, what + below)
    if inner:
        raise CheckpointError(f"{store.url}: no checkpoint here: neither {SINGLE_NAME} nor {INDEX_NAME} is in the folder{below}")
    loose = [name for name in present if name.endswith(".safetensors")]
    if loose:
        raise CheckpointError(
            f"{store.url}: {INDEX_NAME} and {SINGLE_NAME} are both missing, though there are weight files ({_some(loose)}); "
            "restore the index, it says which of them belong to the model"
        )
    raise CheckpointError(
        f"{store.url}: no checkpoint here: neither {SINGLE_NAME} nor {INDEX_NAME} is in the folder; name the one that a model was saved to"
    )


def refuse_two_models(store: Store, present: Mapping[str, Identity], weight_map: Mapping[str, str]) -> None:
    """Raise CheckpointError for a whole model in one file beside an index of other files: loaders differ in which they read."""
    if SINGLE_NAME in present and SINGLE_NAME not in weight_map.values():
        others = _some(sorted(set(weight_map.values())))
        raise CheckpointError(
            f"{store.url}: two models are here: {SINGLE_NAME}, which transformers reads, and the files that {INDEX_NAME} names ({others}), "
            f"which vLLM reads. One is left over from an earlier save: move {INDEX_NAME} away to merge the first, {SINGLE_NAME} to merge "
            "the second"
        )


def _refuse_if(store: Store, present: Mapping[str, Identity], patterns: Iterable[str], what: str) -> None:
    found = sorted(name for name in present if "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns))
    if found:
        raise CheckpointError(f"{store.url}: {what.replace('{found}', _some(found))}")


def _refuse_cache(store: Store, present: Mapping[str, Identity]) -> None:
    """The Hub's cache keeps each version of a model in a folder of its own: of one model, or above all of them."""
    last = store.url.rstrip("/").rpartition("/")[2]
    if _CACHED.fullmatch(last):
        snapshots = sorted({"/".join(name.split("/")[:2]) for name in present if name.startswith("snapshots/") and name.count("/") > 1})
        if not snapshots:
            raise CheckpointError(f"{store.url}: the Hub's cache of a model, with no version of it; download it first (hf download)")
        named: dict[str, list[str]] = {}
        for name in sorted(name for name in present if name.startswith("refs/")):
            target = bytes(store.read(name, limit=1024)).decode(errors="replace").strip()
            named.setdefault(f"snapshots/{target}", []).append(name.removeprefix("refs/"))
        listed = [f"{store.url}/{path}" + (f" ({', '.join(named[path])})" if path in named else "") for path in snapshots]
        raise CheckpointError(f"{store.url}: the root of the Hub's cache of a model; name the snapshot in it: {_some(listed)}")
    models = sorted({name.split("/")[0] for name in present if _CACHED.match(name) and "/" in name})
    if models:
        ids = [_CACHED.sub(r"\1/\2", name) for name in models]
        raise CheckpointError(
            f"{store.url}: the Hub's cache of many models ({_some(ids)}); name a snapshot of one, {store.url}/{models[0]}/snapshots/…, or "
            f"hf://{ids[0]}"
        )


def _some(names: list[str]) -> str:
    first = ", ".join(map(plain, names[:3]))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
