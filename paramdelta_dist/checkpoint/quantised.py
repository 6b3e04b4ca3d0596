"""Which tensors of a model are codes that mean nothing without a scale, whatever dtype they hide in.

A dtype does not say it: codes of four bits come as U8 and I32, scales as U8, and a list in the config of what is left out is often
wrong. The names do: a tensor is quantised if the scale that goes with it is there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.header import Tensor, shown


class Quantised(NamedTuple):
    """Codes of one matrix, and what goes with them."""

    scheme: str
    """In words, by the names of the tensors."""
    tensors: tuple[str, ...]


_NARROW = frozenset(name for name, dtype in DTYPES.items() if dtype.kind is Kind.QUANTIZED) | {"U8", "I8", "U16", "I16", "U32", "I32"}
"""Dtypes that codes and scales are kept in; counters and positions are I64, masks BOOL or alone."""

_PART = re.compile(
    r"[._](?:weight_|input_|output_|activation_|pre_quant_|nested_|q)?"
    r"(packed|blocks|codes|qdata|scales?|scale_inv|scale_2|scale_weight|global_scale|zero_points?|zeros?|g_idx|absmax|quant_map|shape|codebooks?"
    r"|SCB|weight_format|quant_state\.[^.]+|_data|_scale|_shift|meta)$"
)
"""The end of the name of what goes with a matrix."""
_MATRIX = re.compile(r"[._](?:weight|qweight|q_weight|W_q)$")
_SCALES = frozenset({
    "scale", "scales", "scale_inv", "scale_2", "scale_weight", "global_scale", "zero_point", "zero_points", "zero", "zeros", "absmax",
    "codebook", "codebooks", "SCB", "_scale", "quant_map", "quant_state",
})  # fmt: skip
_PACKED = _SCALES | {"packed", "blocks", "codes", "qdata", "_data", "qweight", "q_weight", "W_q"}
"""Parts that are of something quantised wherever they are no floating-point numbers."""
_PLAIN_SCALES = (".weight_scale", ".weight_scale_inv", "_scale_inv", ".weight_scale_2", ".qscale_weight", ".absmax", ".SCB")
"""Names that nothing else has: with them a matrix is quantised in whatever dtype it is kept."""
_SCHEMES = (
    ({"packed", "shape", "global_scale"}, "compressed-tensors"),
    ({"blocks"}, "MXFP4"),
    ({"qweight", "g_idx"}, "GPTQ or AWQ"),
    ({"absmax", "SCB", "quant_map", "quant_state"}, "bitsandbytes"),
    ({"scale_inv"}, "FP8 in blocks"),
    ({"W_q"}, "HQQ"),
    ({"codes", "codebook", "codebooks"}, "AQLM"),
)


def find_quantised(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> list[Quantised]:
    """The quantised matrices of a model, in the order of the names."""
    if not any(tensor.dtype in _NARROW for tensor in tensors.values()) and not any(name.endswith(_PLAIN_SCALES) for name in tensors):
        return []
    groups: dict[str, dict[str, str]] = {}
    """By what their names begin with: the tensors, and which part each is."""
    for name in tensors:
        part = _PART.search(name)
        rest = name[: part.start()] if part else name
        matrix = _MATRIX.search(rest)
        groups.setdefault(rest[: matrix.start()] if matrix else rest, {})[name] = (
            part[1].partition(".")[0] if part else matrix[0][1:] if matrix else ""
        )
    claimed = claimed_scheme(config)
    found = []
    for parts in groups.values():
        dtypes = {name: tensors[name].dtype for name in parts}
        if _is_quantised(parts, dtypes, claimed=claimed is not None):
            scheme = next((scheme for marks, scheme in _SCHEMES if marks & set(parts.values())), None)
            floats = any(DTYPES[dtype].kind is Kind.QUANTIZED for dtype in dtypes.values())
            found.append(Quantised(scheme or ("FP8" if floats else claimed or "integers with scales"), tuple(parts)))
    return found


def _is_quantised(parts: Mapping[str, str], dtypes: Mapping[str, str], *, claimed: bool) -> bool:
    narrow = [name for name, dtype in dtypes.items() if dtype in _NARROW]
    codes = [name for name, part in parts.items() if part not in _SCALES]
    return (
        (any(part in _SCALES for part in parts.values()) and any(name in codes for name in narrow))
        or (bool(codes) and any(name.endswith(_PLAIN_SCALES) for name in parts))
        or any(claimed or parts[name] in _PACKED or DTYPES[dtypes[name]].kind is Kind.QUANTIZED for name in narrow)
    )


def claimed_scheme(config: Mapping[str, Any] | None) -> str | None:
    """The scheme that a config says the model is quantised by."""
    for table in (config, (config or {}).get("text_config")):
        for key in ("quantization_config", "compression_config"):
            claim = table.get(key) if isinstance(table, Mapping) else None
            if isinstance(claim, Mapping) and claim:
                return shown(claim.get("quant_method") or claim.get("quant_algo") or key)
    return None


def left_over(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Fields of a config, by dotted name, that speak of a quantisation while all tensors are plain numbers."""
    tables = {"": config, "text_config.": (config or {}).get("text_config")}
    fields = [
        prefix + key
        for prefix, table in tables.items()
        for key in ("quantization_config", "compression_config")
        if isinstance(table, Mapping) and table.get(key)
    ]
    return tuple(fields) if fields and not find_quantised(tensors, config) else ()
