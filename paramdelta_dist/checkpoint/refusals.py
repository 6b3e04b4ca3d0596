"""Names of the schemes that are refused, told from the parts of a matrix, and the way out of each."""

from __future__ import annotations

from collections.abc import Mapping, Set
from math import prod

from paramdelta_dist.checkpoint.declared import Declared
from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.header import Tensor
from paramdelta_dist.checkpoint.parts import Part

SCALES = frozenset({
    "scale", "scales", "scale_inv", "scale_2", "scale_weight", "global_scale", "zero_point", "zero_points", "zero", "zeros", "absmax",
    "codebook", "codebooks", "SCB", "_scale", "quant_map", "quant_state",
})  # fmt: skip
"""Kinds of parts that are no codes."""

_BY_A_PART = (
    (frozenset({"absmax", "quant_map", "quant_state"}), "bitsandbytes, 4 bits"),
    (frozenset({"SCB"}), "bitsandbytes, 8 bits"),
    (frozenset({"meta"}), "Marlin of compressed-tensors, 2:4 sparse"),
    (frozenset({"bitmask", "compressed", "row_offsets"}), "2:4 sparse, of compressed-tensors"),
    (frozenset({"trellis", "suh", "svh"}), "EXL3"),
    (frozenset({"q_weight", "q_groups", "q_scale_max"}), "EXL2"),
    (frozenset({"qdata"}), "torchao"),
    (frozenset({"_data"}), "quanto"),
    (frozenset({"W_q"}), "HQQ"),
    (frozenset({"codes", "codebook", "codebooks"}), "AQLM"),
)
"""Parts that one scheme alone has; the first that is there counts."""

_ORIGINAL = "use the checkpoint that it was quantised from"
_PLAIN = f"{_ORIGINAL}, or dequantise it first"
_DECOMPRESS = f"{_PLAIN} (transformers: `quantization_config=CompressedTensorsConfig(dequantize=True)`, then save_pretrained)"
_LOADED = f"{_PLAIN} (transformers: load it, model.dequantize(), and save_pretrained)"
_WAYS = (
    ("rotations", f"{_ORIGINAL}: its matrices were turned before (`transform_config`), and are so still when somebody dequantises them"),
    (
        "pre_quant_scale",
        f"{_ORIGINAL}: inputs are multiplied by `pre_quant_scale` before they meet its matrices, which those of other models, and its own "
        "when somebody dequantises them, do not reckon with",
    ),
    (
        "AWQ",
        f"{_ORIGINAL}, and quantise the merged model again: AWQ moved factors of the channels into norms and other matrices, so that "
        "its own are not those of the model, even when somebody dequantises them",
    ),
    (
        "GPTQ",
        f"{_PLAIN} (GPTQModel), and quantise the merged model again: GPTQ finds codes together, by their effect on data, and rounding each "
        "to the nearest is another and worse scheme",
    ),
    ("swizzled", f"{_PLAIN}, or export it with its scales in the order of rows: these are padded, in an order of some unit"),
    ("order of activations", f"{_DECOMPRESS}: columns that share a scale do not lie side by side"),
    ("INT8", f"{_DECOMPRESS}; where SmoothQuant made it, the original alone will do: its factors are in norms and other matrices"),
    ("compressed-tensors", _DECOMPRESS),
    ("bitsandbytes", _LOADED),
    ("HQQ", _LOADED),
    ("quanto", _LOADED),
    ("torchao", _LOADED),
    ("FBGEMM", _LOADED),
    ("MLX", f"{_PLAIN} (mlx_lm.convert with --dequantize)"),
)
"""By words in the name of a scheme, of which the first that is there counts."""


def way_out(scheme: str) -> str:
    """The way to a checkpoint that can be merged, from one that is quantised by a scheme of this name."""
    return next((way for mark, way in _WAYS if mark in scheme), _PLAIN)


def scheme_name(parts: Mapping[Part, Tensor], said: Declared) -> str | None:
    """The scheme that a matrix is quantised by, in words; None where its parts are common to several schemes."""
    has = {part.kind: tensor for part, tensor in parts.items()}
    codes = {tensor.dtype for part, tensor in parts.items() if part.kind not in SCALES}
    scales = {tensor.dtype for part, tensor in parts.items() if part.kind in ("scale", "scales", "scale_inv")}
    name = _by_parts(has, codes, scales)
    if name == "MXFP4 of compressed-tensors" and any((group.kind, group.bits) == ("float", 6) for group in said.groups):
        name = "MXFP6 of compressed-tensors"
    if said.rotated:
        return f"{name or 'compressed-tensors'}, with rotations"
    if any(part.end.endswith("pre_quant_scale") for part in parts):
        return f"{name or 'codes'}, with pre_quant_scale"
    if name is None:
        return None
    more = [what for holds, what in _peculiar(name, has, said) if holds]
    return ", ".join([name, *more[:1]])


def _peculiar(name: str, has: Mapping[str, Tensor], said: Declared) -> list[tuple[bool, str]]:
    """Peculiarities for which a matrix of a scheme that is known otherwise cannot be decoded, and whether it has them."""
    scales = has.get("scale")
    codes = has.get("packed") or has.get("weight")
    padded = codes and codes.shape and scales and prod(scales.shape) > prod(codes.shape[:-1]) * -(-codes.shape[-1] // 8)
    return [
        ("g_idx" in has and "compressed-tensors" in name, "in the order of activations"),
        ("zero_point" in has and ("compressed-tensors" in name or name.startswith(("INT8", "FP8"))), "with zero points"),
        (bool(padded) and name.startswith("NVFP4"), "with swizzled scales"),
        (name.startswith("FP8") and said.method == "fbgemm_fp8" and "weight" not in has, "fused experts of FBGEMM"),
    ]


def _by_parts(has: Mapping[str, Tensor], codes: Set[str], scales: Set[str]) -> str | None:
    for marks, scheme in _BY_A_PART:
        if marks & has.keys():
            return scheme
    if "packed" in has:
        if "I32" in codes or "shape" in has:
            return "integers packed by compressed-tensors"
        floats = "NVFP4" if "F8_E4M3" in scales else "MXFP4" if scales & {"U8", "F8_E8M0"} else None
        return f"{floats} of compressed-tensors" if floats else "compressed-tensors"
    if "scale_2" in has:
        return "NVFP4 of ModelOpt" if "U8" in codes else "FP8 of ModelOpt"
    if "blocks" in has or (scales == {"F8_E8M0"} and codes <= {"I8", "U8"}):
        return "MXFP4"
    if "qweight" in has:
        return "GPTQ" if "g_idx" in has else _gptq_or_awq(has["qweight"], has.get("scales"))
    if "U32" in codes and "scales" in has:
        return "MLX"
    if "scale" in has and codes == {"I8"}:
        return "INT8"
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
