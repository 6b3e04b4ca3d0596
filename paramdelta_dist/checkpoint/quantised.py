"""Quantised tensors of a model: codes that mean nothing without a scale, whatever dtype they hide in.

A dtype does not say it: codes of four bits come as U8 and I32, scales as U8, and a list in the config of what is left out is often
wrong. The names do: a tensor is quantised if the scale that goes with it is there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.families import dtypes_of, names_that
from paramdelta_dist.checkpoint.header import Tensor, shown
from paramdelta_dist.checkpoint.parts import part_of


class Quantised(NamedTuple):
    """Codes of one matrix, and what goes with them."""

    scheme: str
    """In words, by the names of the tensors."""
    tensors: tuple[str, ...]


_NARROW = frozenset(name for name, dtype in DTYPES.items() if dtype.kind is Kind.QUANTIZED) | {"U8", "I8", "U16", "I16", "U32", "I32"}
"""Dtypes that codes and scales are kept in; counters and positions are I64, masks BOOL or alone."""

_SCALES = frozenset({
    "scale", "scales", "scale_inv", "scale_2", "scale_weight", "global_scale", "zero_point", "zero_points", "zero", "zeros", "absmax",
    "codebook", "codebooks", "SCB", "_scale", "quant_map", "quant_state",
})  # fmt: skip
_PACKED = _SCALES | {"packed", "blocks", "codes", "qdata", "_data", "qweight", "q_weight", "W_q", "trellis"}
"""Parts that are of something quantised wherever they are no floating-point numbers."""
_PLAIN_SCALES = (".weight_scale", ".weight_scale_inv", "_scale_inv", ".weight_scale_2", ".qscale_weight", ".absmax", ".SCB")
"""Names that nothing else has: with them a matrix is quantised in whatever dtype it is kept."""


_BY_A_PART = (
    (frozenset({"trellis", "suh", "svh"}), "EXL3"),
    (frozenset({"q_weight", "q_groups", "q_scale_max"}), "EXL2"),
    (frozenset({"qdata"}), "torchao"),
    (frozenset({"_data"}), "quanto"),
    (frozenset({"W_q"}), "HQQ"),
    (frozenset({"codes", "codebook", "codebooks"}), "AQLM"),
)
"""Parts that one scheme alone has."""


def find_quantised(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> list[Quantised]:
    """The quantised matrices of a model, in the order of the names."""
    if dtypes_of(tensors).isdisjoint(_NARROW) and not names_that(lambda name: name.endswith(_PLAIN_SCALES), tensors):
        return []
    groups: dict[str, dict[str, str]] = {}
    """By what their names begin with: the tensors, and which part each is."""
    for name in tensors:
        stem, _, kind = part_of(name)
        groups.setdefault(stem, {})[name] = kind
    claimed = claimed_scheme(config)
    found = []
    for parts in groups.values():
        dtypes = {name: tensors[name].dtype for name in parts}
        if _is_quantised(parts, dtypes, claimed=claimed is not None):
            found.append(Quantised(_scheme(tensors, parts) or claimed or "integers with scales", tuple(parts)))
    return found


def _scheme(tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> str | None:
    """The scheme that a matrix is quantised by, told from its parts and their dtypes; None where these are common to several schemes."""
    has = {part: tensors[name] for name, part in parts.items()}
    codes = {tensors[name].dtype for name, part in parts.items() if part not in _SCALES}
    scales = {tensors[name].dtype for name, part in parts.items() if part in ("scale", "scales", "scale_inv")}
    if has.keys() & {"absmax", "quant_map", "quant_state"}:
        return "bitsandbytes, 4 bits"
    if "SCB" in has:
        return "bitsandbytes, 8 bits"
    if "packed" in has:
        if "I32" in codes or "shape" in has:
            return "integers packed by compressed-tensors"
        floats = "NVFP4" if "F8_E4M3" in scales else "MXFP4" if scales & {"U8", "F8_E8M0"} else None
        return f"{floats} of compressed-tensors" if floats else "compressed-tensors"
    if "scale_2" in has:
        return "NVFP4 of ModelOpt" if "U8" in codes else "FP8 of ModelOpt"
    if "blocks" in has or (scales == {"F8_E8M0"} and codes <= {"I8", "U8"}):
        return "MXFP4"
    for marks, scheme in _BY_A_PART:
        if marks & has.keys():
            return scheme
    if "qweight" in has:
        return "GPTQ" if "g_idx" in has else _gptq_or_awq(has["qweight"], has.get("scales"))
    if "U32" in codes and "scales" in has:
        return "MLX"
    return _narrow_floats(has, codes, scales)


def _gptq_or_awq(codes: Tensor, scales: Tensor | None) -> str:
    """They pack along different sides of a matrix: the scales have as many columns as it."""
    if scales is None or len(codes.shape) != 2 or len(scales.shape) != 2:
        return "GPTQ or AWQ"
    return "GPTQ" if codes.shape[1] == scales.shape[1] else "AWQ"


def _narrow_floats(has: Mapping[str, Tensor], codes: Set[str], scales: Set[str]) -> str | None:
    dtypes = {tensor.dtype for tensor in has.values() if DTYPES[tensor.dtype].kind is Kind.QUANTIZED}
    if "F4" in dtypes:
        return "FP4"
    if "scale_inv" in has or ("scale" in has and "F8_E8M0" in scales):
        return "FP8 in blocks" if len(next(has[part] for part in ("scale_inv", "scale") if part in has).shape) > 1 else "FP8"
    if dtypes & codes:
        return "MXFP8" if "U8" in scales else "FP8"
    return "FP8" if dtypes else None


def _is_quantised(parts: Mapping[str, str], dtypes: Mapping[str, str], *, claimed: bool) -> bool:
    narrow = [name for name, dtype in dtypes.items() if dtype in _NARROW]
    codes = [name for name, part in parts.items() if part not in _SCALES]
    return (
        (any(part in _SCALES for part in parts.values()) and any(name in codes for name in narrow))
        or any(name.endswith(_PLAIN_SCALES) for name in parts)
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


def left_over(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, *, decoded: bool = False) -> tuple[str, ...]:
    """Fields of a config, by dotted name, that speak of a quantisation while all tensors are plain numbers, or are written as such
    because they are `decoded`."""
    tables = {"": config, "text_config.": (config or {}).get("text_config")}
    fields = [
        prefix + key
        for prefix, table in tables.items()
        for key in ("quantization_config", "compression_config")
        if isinstance(table, Mapping) and table.get(key)
    ]
    if decoded:
        return (*fields, *(key for key in ("expert_dtype", "scale_fmt") if key in (config or {})))
    is_plain = fields and not any(tensor.encoded is not None for tensor in tensors.values()) and not find_quantised(tensors, config)
    return tuple(fields) if is_plain else ()
