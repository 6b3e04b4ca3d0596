"""Parts of a model that others go without as a whole: layers that predict more tokens, towers for pictures and sound, projectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

MTP = "MTP layer"
"""The kind of a layer that predicts more tokens than the next."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_KINDS = (
    (MTP, re.compile(r"mtp(_\w+)?\.")),
    ("projector", re.compile(r"[^.]*(projector|connector)[^.]*\.")),
    ("audio tower", re.compile(r"(embed_)?(audio|speech|sound)[^.]*(\.|$)")),
    ("vision tower", re.compile(r"((embed_)?(vision|visual|image)[^.]*|vit)(\.|$)")),
)
"""By the beginning of a name without what is around a language model."""


class Part(NamedTuple):
    """A part that is there as a whole or not at all."""

    kind: str
    """In words."""
    module: str
    """The first part of its names, or the number of the layer."""


class Families(NamedTuple):
    """The names of one model."""

    names: Mapping[str, Sequence[str]]
    """Those of each family."""
    cores: Mapping[str, str]
    """The one spelling of the name of each family."""
    layers: int | None
    """Layers that the config counts: those behind them predict more tokens. None where it does not say."""


def parts_beyond(families: Families, beyond: Collection[str]) -> dict[Part, list[str]]:
    """The names of each part of a model that has none but names `beyond` another."""
    found: dict[Part, list[str]] = {}
    for part, name in _parts(families, lambda name: name in beyond) if beyond else ():
        found.setdefault(part, []).append(name)
    if found:
        for part, _ in _parts(families, lambda name: name not in beyond):
            found.pop(part, None)
    return found


def _parts(families: Families, chosen: Callable[[str], bool]) -> Iterator[tuple[Part, str]]:
    """The parts that tensors belong to, with the names of these, as far as they are chosen."""
    for family, names in families.names.items():
        core = families.cores[family]
        fixed = _part(core)
        layers = families.layers if core.startswith("layers.0.") else None
        if fixed is not None or layers is not None:
            for name in filter(chosen, names):
                part = fixed or _part_of_layer(name, layers)
                if part is not None:
                    yield part, name


def _part(core: str) -> Part | None:
    kind = next((kind for kind, pattern in _KINDS if pattern.match(core)), None)
    return Part(kind, core.partition(".")[0]) if kind else None


def _part_of_layer(name: str, layers: int | None) -> Part | None:
    number = _LAYER.search(name)
    return Part(MTP, number[1]) if number and layers is not None and int(number[1]) >= layers else None
