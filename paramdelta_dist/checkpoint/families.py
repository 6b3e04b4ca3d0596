"""Families of names: those that differ in the numbers between their dots alone, as the layers and experts of a model do.

What is told from a name, without its numbers, is told once for a whole family: models have 200,000 tensors and a few dozen families.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property

from paramdelta_dist.checkpoint.header import Tensor

_NUMBER = re.compile(r"\.\d+(?=\.)")


class Tensors(dict[str, Tensor]):
    """The tensors of a model by name. Models whose headers are the same share one such table, so nothing may change it."""

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """The names of each family, by the name that one with zeros for numbers would have."""
        return _families(self)

    @cached_property
    def dtypes(self) -> frozenset[str]:
        return frozenset(tensor.dtype for tensor in self.values())

    @cached_property
    def has_encoded(self) -> bool:
        """Whether the numbers of any are decoded from several arrays, or arranged in another way."""
        return any(tensor.encoded is not None for tensor in self.values())


def dtypes_of(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """The dtypes that occur."""
    return tensors.dtypes if isinstance(tensors, Tensors) else frozenset(tensor.dtype for tensor in tensors.values())


def has_encoded(tensors: Mapping[str, Tensor]) -> bool:
    """The same of any table."""
    return (tensors if isinstance(tensors, Tensors) else Tensors(tensors)).has_encoded


def names_that(holds: Callable[[str], bool], tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of which something holds, in the order of the tensors; it is asked of one name of each family."""
    families = tensors.families if isinstance(tensors, Tensors) else _families(tensors)
    found = [members for name, members in families.items() if holds(name)]
    if len(found) <= 1:
        return list(*found)
    chosen = {name for members in found for name in members}
    return [name for name in tensors if name in chosen]


def _families(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in tensors:
        families.setdefault(_NUMBER.sub(".0", name), []).append(name)
    return families
