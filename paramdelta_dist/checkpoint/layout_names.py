"""Names of tensors brought to one spelling: without what is around a language model, and as one library has them. By families of names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.layout_table import COMPILED, PREFIXES, families_of

_NUMBER = re.compile(r"\.(\d+)(?=\.)")
_ZERO = re.compile(r"\.0(?=\.)")


def numbers_of(name: str) -> tuple[str, ...]:
    """The numbers between the dots of a name, as they are written."""
    return tuple(_NUMBER.findall(name))


class Group(NamedTuple):
    """Tensors of one model whose names differ in numbers alone."""

    form: str
    """Their name, with %s for each number."""
    slots: int
    """Numbers in it."""
    names: list[str]

    def name(self, numbers: Sequence[str]) -> str:
        """The name with these numbers."""
        return self.form % tuple(numbers)


class Spelling:
    """Brings names to one spelling, for models of some types."""

    def __init__(self, types: Collection[str]) -> None:
        self._rules = [(re.compile(pattern), template) for family in families_of(types) for pattern, template in family.renames]

    def core(self, family: str) -> str:
        """The one spelling of the name of a family, which has 0 for every number."""
        name = family.replace(COMPILED, "")
        while prefix := next((each for each in PREFIXES if name.startswith(each)), ""):
            name = name[len(prefix) :]
        for pattern, template in self._rules:
            name = pattern.sub(template, name)
        return name


class Names:
    """The tensors of one model by the one spelling of their names."""

    def __init__(self, tensors: Tensors, spelling: Spelling) -> None:
        self._tensors, self._spelling = tensors, spelling

    @cached_property
    def cores(self) -> dict[str, str]:
        """The one spelling of every family, by the family."""
        return {family: self._spelling.core(family) for family in self._tensors.families}

    def groups(self, without: Mapping[str, object]) -> dict[str, Group]:
        """By the one spelling of their names, the tensors whose names are not in `without`. Families of which several have one spelling
        are left out: nobody could tell which is meant."""
        found: dict[str, Group | None] = {}
        for family, members in self._tensors.families.items():
            if names := [name for name in members if name not in without]:
                core = self.cores[family]
                found[core] = None if core in found else _group(family, names)
        return {core: group for core, group in found.items() if group is not None}


def _group(family: str, names: list[str]) -> Group:
    form, count = _ZERO.subn(".%s", family.replace("%", "%%"))
    return Group(form, count, names)
