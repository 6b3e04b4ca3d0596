"""The parts of a quantised matrix, told from the ends of their names: codes, scales, and what goes with them."""

from __future__ import annotations

import re
from typing import NamedTuple

_PART = re.compile(
    r"[._](?:weight_|input_|output_|activation_|pre_quant_|nested_|q)?"
    r"(packed|blocks|codes|qdata|scales?|scale_inv|scale_2|scale_weight|global_scale|zero_points?|zeros?|g_idx|absmax|quant_map|shape|codebooks?"
    r"|SCB|weight_format|quant_state\.[^.]+|_data|_scale|_shift|meta|biases|trellis|su|sv|suh|svh|mcg|mul1|q_groups|q_invperm|q_perm|q_scale_max"
    r"|scale_act|scale_packed|compressed|bitmask|row_offsets)$"
)
"""The end of the name of what goes with a matrix."""
_MATRIX = re.compile(r"[._](?:weight|qweight|q_weight|W_q)$")


class Part(NamedTuple):
    """The name of a tensor, as one of those that a matrix is quantised in."""

    stem: str
    """The beginning that the names of all parts of a matrix share; the whole name of a tensor that is none."""
    end: str
    """The rest of the name."""
    kind: str
    """The last word of it, such as `packed`, `scale` or `weight`; empty where there is none that is known."""


def part_of(name: str) -> Part:
    """The stem, end and kind of a name."""
    part = _PART.search(name)
    rest = name[: part.start()] if part else name
    matrix = _MATRIX.search(rest)
    stem = rest[: matrix.start()] if matrix else rest
    kind = part[1].partition(".")[0] if part else matrix[0][1:] if matrix else ""
    return Part(stem, name[len(stem) :], kind)
