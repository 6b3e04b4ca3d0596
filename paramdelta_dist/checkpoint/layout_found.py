"""What has been found of a model under the names and shapes of the base's, while it is looked for."""

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
    used: dict[str, str] = field(default_factory=dict)
    """Tensors of the other that these are made of, with the last one of the base's that each is part of."""
    told: set[str] = field(default_factory=set)
    """Tensors of the base that problems speak of."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Each with the way on."""

    def settle(self, made: Iterable[tuple[str, Tensor, Iterable[str]]]) -> int:
        """Take tensors by the base's names, with those of the other that they are made of; all or, where that raises, none. Returns how
        many."""
        every = [*made]
        for name, tensor, sources in every:
            self.tensors[name] = tensor
            for source in sources:
                self.used[source] = name
        return len(every)

    def refuse(self, names: Iterable[str], sources: Iterable[str], problem: str, remedy: str) -> None:
        """Note a problem with tensors of the base, and that these of the other are part of it."""
        self.problems.append((problem, remedy))
        self.told.update(names)
        self.used.update(dict.fromkeys(sources, ""))
