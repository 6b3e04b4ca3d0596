"""Quantised tensors of a model: codes that mean nothing without a scale, whatever dtype they hide in.

A dtype does not say it: codes of four bits come as U8 and I32, scales as U8, and a list in the config of what is left out is often
wrong. The names do: a tensor is quantised if the scale that goes with it is there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.declared import QUANTISATION_FIELDS, declared, quantisation_fields, sections
from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.families import dtypes_of, has_encoded, names_that
from paramdelta_dist.checkpoint.header import Tensor, shown
from paramdelta_dist.checkpoint.parts import Part, part_of
from paramdelta_dist.checkpoint.refusals import SCALES, scheme_name


class Quantised(NamedTuple):
    """Codes of one matrix, and what goes with them."""

    scheme: str
    """In words, by the names of the tensors."""
    tensors: tuple[str, ...]


_NARROW = frozenset(name for name, dtype in DTYPES.items() if dtype.kind is Kind.QUANTIZED) | {"U8", "I8", "U16", "I16", "U32", "I32"}
"""Dtypes that codes and scales are kept in; counters and positions are I64, masks BOOL or alone."""

_PACKED = SCALES | {"packed", "blocks", "codes", "qdata", "_data", "qweight", "q_weight", "W_q", "trellis"}
"""Parts that are of something quantised wherever they are no floating-point numbers."""
_PLAIN_SCALES = (".weight_scale", ".weight_scale_inv", "_scale_inv", ".weight_scale_2", ".qscale_weight", ".absmax", ".SCB")
"""Names that nothing else has: with them a matrix is quantised in whatever dtype it is kept."""


def find_quantised(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> list[Quantised]:
    """The quantised matrices of a model that are no logical tensors, in the order of the names."""
    if dtypes_of(tensors).isdisjoint(_NARROW) and not names_that(lambda name: name.endswith(_PLAIN_SCALES), tensors):
        return []
    groups: dict[str, dict[Part, str]] = {}
    """By what their names begin with: the names of tensors, and which part each is."""
    for name in tensors:
        part = part_of(name)
        groups.setdefault(part.stem, {})[part] = name
    claimed, said, decoded = claimed_scheme(config), declared(config), has_encoded(tensors)
    found = []
    for named in groups.values():
        parts = {part: tensors[name] for part, name in named.items()}
        if _is_quantised(parts, claimed=claimed is not None and not decoded):
            found.append(Quantised(scheme_name(parts, said) or claimed or "integers with scales", tuple(named.values())))
    return found


def _is_quantised(parts: Mapping[Part, Tensor], *, claimed: bool) -> bool:
    """Whether parts are of a quantised matrix; `claimed` where the config says so of tensors that nothing else explains."""
    narrow = [part for part, tensor in parts.items() if tensor.dtype in _NARROW]
    return (
        (any(part.kind in SCALES for part in parts) and any(part.kind not in SCALES for part in narrow))
        or any((part.stem + part.end).endswith(_PLAIN_SCALES) for part in parts)
        or any(claimed or part.kind in _PACKED or DTYPES[parts[part].dtype].kind is Kind.QUANTIZED for part in narrow)
    )


def claimed_scheme(config: Mapping[str, Any] | None) -> str | None:
    """The scheme that a config says the model is quantised by."""
    for section in sections(config):
        for field in QUANTISATION_FIELDS:
            claim = section.get(field)
            if isinstance(claim, Mapping) and claim:
                return shown(claim.get("quant_method") or claim.get("quant_algo") or field)
    return None


def left_over(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Fields of a config, by dotted name, that speak of a quantisation while all tensors are plain numbers."""
    fields = quantisation_fields(config)
    return fields if fields and not has_encoded(tensors) and not find_quantised(tensors, config) else ()
