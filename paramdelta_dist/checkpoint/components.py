"""The part of a model that a tensor belongs to, and its layer, told from its name alone.

Names are read segment by segment between the dots, by what the libraries that save checkpoints call their modules, and not by
substrings: `mlp.gate.weight` chooses experts, `mlp.gate_proj.weight` is a projection. A name that says nothing known is
`other`, never a guess.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple


class Component(StrEnum):
    """The parts of a model, in the order a token meets them."""

    EMBEDDING = "embedding"
    """Tokens, positions and token types to vectors."""
    ATTENTION = "attention"
    """Projections of attention in any form, and what belongs to them."""
    MLP = "mlp"
    """The feed-forward network that every token passes."""
    ROUTER = "router"
    """The tensors that choose or weigh experts."""
    EXPERT = "expert"
    """Feed-forward networks of a mixture, the shared ones among them."""
    NORM = "norm"
    """Scales and offsets of normalisation, wherever it stands."""
    LM_HEAD = "lm_head"
    """Vectors to tokens."""
    OTHER = "other"
    """Whatever else: poolers, classifiers, state-space mixers, encoders of images and sound with all they contain."""


class Place(NamedTuple):
    """The component and the layer of a tensor."""

    component: Component
    layer: int | None
    """Counted from 0 as the name counts; None outside the layers. Encoder and decoder of one model count each for itself."""


_CONTAINERS = frozenset({"layers", "layer", "h", "blocks", "block"})
"""Modules whose children are numbered layers."""
_TOWER = re.compile(r"vision|visual|audio|speech|image|multi_modal_projector|mm_projector|connector")
_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
_ROUTER = frozenset({"gate", "router", "shared_expert_gate"})
_EXPERT = re.compile(r"(shared_)?experts?$")
_ATTENTION = re.compile(r"(^|_)(self)?attn(_|$)|attention$|^sinks$")
_MLP = re.compile(r"^(mlp|ffn|feed_forward|ff|densereludense|block_sparse_moe|moe|intermediate|fc\d|w[123])$")
_EMBEDDING = re.compile(r"^(embed_\w+|\w+_embeddings?|embeddings?|wte|wpe|shared)$")
_HEAD = re.compile(r"^(lm_head|embed_out|shared_head|predictions)$")


@lru_cache(maxsize=1 << 18)
def locate(name: str) -> Place:
    """The component and layer of a tensor, by its full name in the checkpoint."""
    segments = name.lower().split(".")
    component, layer = _read(tuple(["0" if segment.isdecimal() else segment for segment in segments]))
    return Place(component, None if layer is None else int(segments[layer]))


@lru_cache(maxsize=1 << 12)
def _read(segments: tuple[str, ...]) -> tuple[Component, int | None]:
    """The component, and which segment is the layer's number, of names that differ in their numbers alone."""
    modules = segments[:-1] or segments
    if any(_TOWER.search(segment) for segment in modules):
        return Component.OTHER, None
    layer = next((n for n, (container, number) in enumerate(pairwise(segments), 1) if container in _CONTAINERS and number == "0"), None)
    return _component(segments, modules, layer), layer


def _component(segments: tuple[str, ...], modules: tuple[str, ...], layer: int | None) -> Component:
    if any(_NORM.search(segment) for segment in modules):
        return Component.NORM
    if any(segment in _ROUTER for segment in modules):
        return Component.ROUTER
    if any(_EXPERT.match(segment) for segment in modules):
        return Component.EXPERT
    if any(_HEAD.match(segment) for segment in modules):
        return Component.OTHER if "transform" in modules else Component.LM_HEAD
    if any(_ATTENTION.search(segment) for segment in modules):
        return Component.ATTENTION
    if any(_MLP.match(segment) for segment in modules):
        return Component.MLP
    if layer is None:
        if any(_EMBEDDING.match(segment) for segment in modules):
            return Component.EMBEDDING
        if modules[-1] == "output":
            return Component.LM_HEAD
    elif modules[-2:] == ("output", "dense"):  # BERT calls the second half of its feed-forward network so
        return Component.MLP
    elif modules[-1] == "embed_tokens":  # DeepSeek's layer of multi-token prediction has a copy of its own
        return Component.EMBEDDING
    return Component.OTHER
