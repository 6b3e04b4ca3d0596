"""Special tokens as the folder of the tokenizer that is written names them, besides their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.room import Room, json_cost
from paramdelta_dist.storage import Identity, Store, read_whole

MAX_NAMES = 64 << 20
"""Longest file that is looked at, in bytes."""
_NAMING = ("special_tokens_map.json", "tokenizer_config.json")
"""Files that name special tokens; what a later one says counts."""


class Written(NamedTuple):
    """The folder of a tokenizer."""

    url: str
    """As messages show it."""
    config: Mapping[str, Any] | None
    """Its config.json; None where it has none, as a folder with nothing but a tokenizer."""
    generation: Mapping[str, Any]
    """Its generation_config.json."""
    names: Mapping[str, str]
    """Token by role: bos, eos, pad, unk and others."""


def read_written(url: str, store: Store, files: Mapping[str, Identity], config: Mapping[str, Any] | None, room: Room) -> Written:
    """The special tokens that the side `files` of a folder name, given its `config` where it is a model that has been opened. What cannot
    be read says nothing.

    Raises InputChanged when a file is another by now, OverBudget when there is no room for one.
    """

    def held(name: str) -> Mapping[str, Any]:
        return _read(store, name, files[name], room) if name in files else {}

    config = (held("config.json") or None) if config is None else config
    names = {key: token for name in _NAMING for key, token in _names(held(name)).items()}
    return Written(url, config, held("generation_config.json"), names)


def _read(store: Store, name: str, identity: Identity, room: Room) -> Mapping[str, Any]:
    if identity.size > MAX_NAMES:
        return {}
    with room.taken(identity.size, f"{store.url}/{name}"):
        data = read_whole(store, name, identity, limit=MAX_NAMES)
        with room.taken(json_cost(data), f"{store.url}/{name}"):
            try:
                value = json.loads(str(data, "utf-8"))
            except (ValueError, RecursionError):
                return {}
            if not isinstance(value, dict):
                return {}
            return {key: part for key, part in value.items() if key != "added_tokens_decoder"}


def _names(section: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by role, as a text or as what has one."""
    found = {}
    for key, value in section.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key.removesuffix("_token")] = text
    return found
