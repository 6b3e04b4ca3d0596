"""The config.json of an output: the base's, byte for byte where nothing in it has become wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.errors import CheckpointError


def render_config(data: bytes | bytearray, dtype: str | None, changes: Mapping[str, Any], without: Sequence[str] = ()) -> bytes:
    """The config that is written, given the base's: with `dtype` where the recipe chose another one, and the fields, by dotted name,
    that a changed vocabulary changes, and `without` those that are left out.

    Raises CheckpointError where a field to be changed has no place.
    """
    if dtype is None and not changes and not without:
        return bytes(data)
    config = changed_config(json.loads(str(data, "utf-8")), dtype, changes)
    for name in without:
        section, _, leaf = name.rpartition(".")
        table = dict(config[section]) if section else config
        table.pop(leaf, None)
        config = config | {section: table} if section else table
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # half of a surrogate pair is no text in UTF-8, and its escape is in JSON


def changed_config(config: Mapping[str, Any], dtype: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same of values."""
    changed = dict(config)
    if dtype is not None:
        named = [field for field in ("dtype", "torch_dtype") if field in changed] or ["torch_dtype"]  # both, where two releases saved it
        changed |= dict.fromkeys(named, DTYPES[dtype].torch)
    for name, value in changes.items():
        *sections, leaf = name.split(".")
        table = changed
        for section in sections:
            held = table.get(section, {})
            if not isinstance(held, dict):
                raise CheckpointError(
                    f"config.json of the base: {shown(name)} is to become {shown(value)}, but {shown(section)} has no fields"
                )
            table[section] = table = dict(held)
        table[leaf] = value
    return changed


def flat_config(config: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """Config fields with the names of nested sections joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in (config or {}).items():
        if isinstance(value, dict) and key.endswith("_config"):
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
