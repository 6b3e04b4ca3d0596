"""The tensors of an adapter's file by what their names say: the factors of products, and whole tensors in place of the base's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from paramdelta_dist.checkpoint.header import StoredArray, Tensor, shown
from paramdelta_dist.kernels.encodings import SCALE_BYTES

_BEFORE = "base_model.model."
_WRAPPER = ".base_layer"
_FACTOR = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.(.+?))??(\.weight)?")
"""Path, whether it is an embedding's, which factor, the name of the adapter."""
_WHOLE = re.compile(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.bias$)")
_OF_TOKENS = re.compile(r".*\.(token_adapter|trainable_tokens)\b.*")
STORED = ("BF16", "F16", "F32", "F64")
"""Dtypes that factors may have."""


class Place(NamedTuple):
    """The place of a product in the model that was trained."""

    path: str
    """Of the module, without what peft put before it and around it."""
    depth: int
    """Wrappers that are around this one: several parameters of one module are adapted by one around the other."""


@dataclass
class Product:
    """The factors of one product."""

    embedding: bool = False
    a: StoredArray | None = None
    b: StoredArray | None = None


class Factors(NamedTuple):
    """The factors of a product, both there and of one dtype."""

    a: StoredArray
    b: StoredArray
    embedding: bool

    @property
    def stored(self) -> str:
        return self.a.tensor.dtype


@dataclass
class Held:
    """All that an adapter holds, and what is wrong with it."""

    products: dict[Place, Factors] = field(default_factory=dict)
    whole: dict[str, StoredArray] = field(default_factory=dict)
    """Tensors that take the place of the base's, by the name that these have in the model that was trained."""
    copies: dict[str, StoredArray] = field(default_factory=dict)
    """The base's own weights, which peft saves beside the factors of embeddings, by the name that these have there."""
    problems: list[str] = field(default_factory=list)


def sort_keys(tensors: Mapping[str, Tensor]) -> Held:
    """Tell by their names what the tensors of an adapter's file are."""
    held, found, adapters = Held(), dict[Place, Product](), dict[str, None]()
    for key, tensor in tensors.items():
        name = key.removeprefix(_BEFORE)
        if factor := _FACTOR.fullmatch(name):
            path, embedding, which, adapter, _ = factor.groups()
            if adapter is not None and f".{adapter}".endswith(".bias"):
                held.problems.append(f"{shown(key)}: a bias of a factor, which no product of factors has")
                continue
            adapters.setdefault(adapter or "", None)
            _put(found.setdefault(_place(path), Product(bool(embedding))), which, StoredArray(key, tensor), held)
        elif ".lora_magnitude_vector" in name:
            held.problems.append(f"{shown(key)}: DoRA, whose rows are scaled by what the base has")
        elif _OF_TOKENS.fullmatch(name):
            held.problems.append(f"{shown(key)}: trainable tokens, which are whole rows and not a delta")
        elif ".lora_" in name or ".original_module." in name:
            held.problems.append(f"{shown(key)}: no tensor that a LoRA adapter is known to have")
        elif name.endswith(f"{_WRAPPER}.weight"):
            held.copies[name.replace(_WRAPPER, "")] = StoredArray(key, tensor)
        else:
            held.whole[_WHOLE.sub("", name)] = StoredArray(key, tensor)
    if len(adapters) > 1:
        held.problems.append(f"several adapters lie in one file: {', '.join(shown(name or 'default') for name in adapters)}")
    held.products = dict(_complete(found, held))
    return held


def _place(path: str) -> Place:
    depth = 0
    while path.endswith(_WRAPPER):
        path, depth = path.removesuffix(_WRAPPER), depth + 1
    return Place(path, depth)


def _put(product: Product, which: str, array: StoredArray, held: Held) -> None:
    if (product.a if which == "A" else product.b) is not None:
        held.problems.append(f"{shown(array.name)}: the factor {which} of its module a second time")
    if which == "A":
        product.a = array
    else:
        product.b = array


def _complete(found: Mapping[Place, Product], held: Held) -> dict[Place, Factors]:
    """The products both of whose factors are there and can be multiplied; a problem for each of the others."""
    complete = {}
    for place, product in found.items():
        a, b = product.a, product.b
        if a is None or b is None:
            array = a or b
            held.problems.append(f"{shown(array.name if array else place.path)}: its other factor, {'B' if a else 'A'}, is missing")
        elif a.tensor.dtype != b.tensor.dtype or a.tensor.dtype not in STORED:
            dtypes = f"{a.tensor.dtype} and {b.tensor.dtype}"
            held.problems.append(f"{shown(a.name)}: factors of {dtypes}; both should be of one of {', '.join(STORED)}")
        elif len(a.tensor.shape) != 2 or len(b.tensor.shape) != 2 or not all((*a.tensor.shape, *b.tensor.shape)):
            shapes = f"{list(a.tensor.shape)} and {list(b.tensor.shape)}"
            held.problems.append(f"{shown(a.name)}: factors of shapes {shapes}, which are no matrices (a convolution's are not read)")
        elif a.tensor.shape[0] != b.tensor.shape[1]:
            shapes = f"{list(a.tensor.shape)} and {list(b.tensor.shape)}"
            held.problems.append(f"{shown(a.name)}: factors of shapes {shapes}, which have no product")
        else:
            complete[place] = Factors(a, b, product.embedding)
    return complete


def rows(array: StoredArray, first: int, last: int) -> StoredArray:
    """Rows [first, last) of a matrix."""
    tensor = array.tensor
    width = tensor.shape[1] * SCALE_BYTES[tensor.dtype]
    start = tensor.start + first * width
    return StoredArray(array.name, tensor._replace(shape=(last - first, tensor.shape[1]), start=start, stop=start + (last - first) * width))
