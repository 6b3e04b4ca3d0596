"""The names that an adapter has for the tensors of a model, and those that the model's files have: prefixes of wrappers differ, and
experts lie apart in one and together in the other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from paramdelta_dist.checkpoint.header import Tensor

_PREFIXES = (
    "_orig_mod.", "module.", "model.language_model.", "language_model.model.", "thinker.model.", "model.", "language_model.", "backbone.",
    "thinker.", "transformer.",
)  # fmt: skip
"""Beginnings of names that say what is around a language model; of those that fit, the first is taken off."""
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",), "up_proj": ("up_proj",)}
"""Fused tensors, [experts, rows, columns], by the matrices whose rows those of an expert are, one after the other."""
_WRAPPED_FIRST = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of a module of experts in the order in which they are registered, and so wrapped: each is around those before it."""


class Split(NamedTuple):
    """A fused tensor as the model's files have it: a matrix for each expert and part."""

    names: tuple[tuple[str, ...], ...]
    """Of each expert, those of its parts, whose rows are those of the fused tensor in this order."""
    shape: tuple[int, ...]
    """[experts, rows, columns] of what they would be together."""


class InFused(NamedTuple):
    """The place of an expert's matrix in a fused tensor."""

    name: str
    """Of the fused tensor."""
    expert: int
    part: int
    parts: int


def _core(name: str) -> str:
    """A name without what is around the model, and with the usual words for experts."""
    while prefix := next((each for each in _PREFIXES if name.startswith(each)), ""):
        name = name[len(prefix) :]
    name = name.replace(".block_sparse_moe.", ".mlp.").replace(".feed_forward.experts.", ".mlp.experts.")
    if ".experts." in name and (found := _EXPERT.match(name)) and found[3] in _PARTS:
        name = f"{found[1]}.{found[2]}.{_PARTS[found[3]]}{name[found.end() :]}"
    return name


class Names:
    """Finds the tensors of a model by the names that others have for them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @cached_property
    def _by_core(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._tensors:
            found.setdefault(_core(name), []).append(name)
        return found

    def find(self, name: str) -> str | None:
        """The tensor of this name, or the only one whose name differs in prefixes alone."""
        if name in self._tensors:
            return name
        found = self._by_core.get(_core(name), [])
        return found[0] if len(found) == 1 else None

    def is_ambiguous(self, name: str) -> bool:
        return name not in self._tensors and len(self._by_core.get(_core(name), [])) > 1

    def split(self, module: str, parameter: str) -> Split | None:
        """The matrices that a fused parameter of a module of experts lies apart in; None where they are not all there, of one shape."""
        experts = (self._parts_of(module, parameter, expert) for expert in itertools.count())
        rows = list(itertools.takewhile(bool, experts))
        shapes = {self._tensors[name].shape for names in rows for name in names}
        if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2:
            return None
        return Split(tuple(rows), (len(rows), len(rows[0]) * shape[0], shape[1]))

    def _parts_of(self, module: str, parameter: str, expert: int) -> tuple[str, ...]:
        """Names of the matrices of an expert; none where one is not there."""
        found = [self.find(f"{module}.{expert}.{part}.weight") for part in _FUSED.get(parameter, ())]
        names = tuple(name for name in found if name is not None)
        return names if len(names) == len(found) else ()

    def in_fused(self, path: str) -> InFused | None:
        """The place in a fused tensor of the expert's matrix that a module at `path` would have."""
        found = _EXPERT.fullmatch(path)
        if not found:
            return None
        part = _PARTS.get(found[3], found[3])
        for parameter, parts in _FUSED.items():
            if part in parts and (name := self.find(f"{found[1]}.{parameter}")) and len(self._tensors[name].shape) == 3:
                return InFused(name, int(found[2]), parts.index(part), len(parts))
        return None


def parameters_in_order(names: list[str]) -> list[str] | None:
    """Parameters of one module in the order in which they are wrapped; None where it is not known."""
    if len(names) < 2:
        return names
    return sorted(names, key=_WRAPPED_FIRST.index) if all(name in _WRAPPED_FIRST for name in names) else None


def is_part_of(name: str, parameter: str) -> bool:
    """Whether a fused parameter has the matrices of modules of this name."""
    return _PARTS.get(name, name) in _FUSED.get(parameter, ())
