"""The tensors found of a model under the names and shapes of the base's, while more are looked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paramdelta_dist.checkpoint.header import Tensor


@dataclass
class Found:
    """The tensors of another model that the base's have been found to be, so far."""

    base: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By the base's names: those that have another name, shape or place in the other model."""
    used: set[str] = field(default_factory=set)
    """Tensors of the other that have their place in the base."""
    told: set[str] = field(default_factory=set)
    """Tensors of the base that problems speak of."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Each with the way on."""

    def settle(self, tensors: Mapping[str, Tensor], sources: Iterable[str]) -> int:
        """Take tensors by the base's names, and those of the other that they are made of. Returns how many."""
        self.tensors.update(tensors)
        self.used.update(sources)
        return len(tensors)

    def refuse(self, names: Iterable[str], sources: Iterable[str], problem: str, remedy: str) -> None:
        """Note a problem with tensors of the base, and that these of the other are part of it."""
        self.problems.append((problem, remedy))
        self.told.update(names)
        self.used.update(sources)
