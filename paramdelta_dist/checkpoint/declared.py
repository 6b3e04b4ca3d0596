"""Statements of a config about quantisation, as values: which blocks share a scale, and the dtype of plain numbers. Nothing in them is
believed of a matrix whose scales say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind

QUANTISATION_FIELDS = ("quantization_config", "compression_config")
"""Fields of a config that describe one, at its top or in its `text_config`."""


class Grid(NamedTuple):
    """The blocks that share a scale, as `Scaled` has them."""

    rows: int
    """0 for all rows of all matrices."""
    columns: int
    """0 for whole rows."""


class Group(NamedTuple):
    """Quantised weights that a config describes."""

    kind: str
    """`float` or `int`."""
    bits: int
    grid: Grid
    symmetric: bool


class Declared(NamedTuple):
    """Everything that a config says about how a model is quantised. Equal ones read the same tensors alike."""

    method: str
    """`quant_method` in lower case; empty where nothing is said."""
    dtype: str
    """Dtype that the numbers would have if they were plain ones."""
    groups: tuple[Group, ...]
    powers_of_two: bool
    """Scales are powers of two in whatever dtype they are kept."""
    rotated: bool
    """Matrices were turned before they were quantised, and are no longer those of the model that they came from."""


def declared(config: Mapping[str, Any] | None) -> Declared:
    """The statements of a config; fields that are not what they should be count as not there."""
    table = quantisation_of(config) or {}
    formats = [table.get("scale_fmt"), *(section.get("scale_fmt") for section in sections(config))]
    return Declared(
        method=str(table.get("quant_method") or "").lower(),
        dtype=_plain_dtype(config),
        groups=tuple(dict.fromkeys(_groups(table))),
        powers_of_two="ue8m0" in formats,
        rotated=bool(table.get("transform_config")),
    )


def sections(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A config and, where it wraps a language model, that of this."""
    return [table for table in (config, (config or {}).get("text_config")) if isinstance(table, Mapping)]


def quantisation_of(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The first description of a quantisation in a config that is not empty."""
    found = (table.get(field) for table in sections(config) for field in QUANTISATION_FIELDS)
    return next((claim for claim in found if isinstance(claim, Mapping) and claim), None)


def quantisation_fields(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The fields that describe a quantisation, by dotted name, in the order of their sections."""
    tables = {"": config, "text_config.": (config or {}).get("text_config")}
    held = ((prefix, table) for prefix, table in tables.items() if isinstance(table, Mapping))
    return tuple(prefix + field for prefix, table in held for field in QUANTISATION_FIELDS if table.get(field))


_BY_NAME = {
    spelling: dtype.name for dtype in DTYPES.values() if dtype.kind is Kind.FLOAT for spelling in (dtype.torch, *dtype.aliases) if spelling
}


def _plain_dtype(config: Mapping[str, Any] | None) -> str:
    named = (table.get(field) for table in sections(config) for field in ("dtype", "torch_dtype"))
    known = (_BY_NAME.get(name.removeprefix("torch.")) for name in named if isinstance(name, str))
    return next(filter(None, known), "BF16")


def _groups(table: Mapping[str, Any]) -> Iterator[Group]:
    blocks = _two(table.get("weight_block_size"))
    if blocks:
        yield Group("float", 8, blocks, True)
    groups = table.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and (grid := _grid(weights)):
            bits = weights.get("num_bits")
            yield Group(str(weights.get("type") or "int"), bits if _size(bits) else 8, grid, weights.get("symmetric") is not False)


def _grid(weights: Mapping[str, Any]) -> Grid | None:
    """The blocks of a group of compressed-tensors or ModelOpt; None where they cannot be told."""
    size, strategy = weights.get("group_size"), weights.get("strategy")
    if strategy is None:
        strategy = "group" if _size(size) else "block" if weights.get("block_structure") else "tensor"
    if strategy == "block":
        return _two(weights.get("block_structure"))
    if strategy in ("group", "tensor_group"):
        return Grid(1, size) if _size(size) else None
    return {"tensor": Grid(0, 0), "channel": Grid(1, 0)}.get(str(strategy))


def _two(value: Any) -> Grid | None:
    """A pair of sizes: a list, or a text such as 128x128."""
    pair = [int(number) for number in re.findall(r"\d{1,9}", value)] if isinstance(value, str) else value
    return Grid(*pair) if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_size, pair)) else None


def _size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 31
