"""One scale for all numbers of a tensor: what has to be known of the result before its first code is written.

A reduction like those of methods, over the numbers that will be encoded: whether they are those of a model that is stored so, whose bytes
then stand in the output, and how large the largest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from paramdelta_dist.kernels.encodings import LARGEST, Scaled
from paramdelta_dist.methods import Reduction


class Found(NamedTuple):
    """What is known of some of the numbers."""

    same: tuple[bool, ...]
    """For the base, and each post that is stored as the output is, whether all its numbers are these, signs of zeros included."""
    peak: float
    """The largest magnitude."""


def look(numbers: memoryview, candidates: Sequence[memoryview], dtype: str) -> Found:
    """What is known of `numbers`, given those of the base and of the posts that are stored alike; all of `dtype` F32 or F64."""
    made, *held = (np.frombuffer(each, np.float64 if dtype == "F64" else np.float32) for each in (numbers, *candidates))
    bits = np.uint64 if dtype == "F64" else np.uint32
    return Found(tuple(bool(np.array_equal(made.view(bits), each.view(bits))) for each in held), float(np.abs(made).max()))


def _combine(total: Found, more: Found) -> Found:
    return Found(tuple(a and b for a, b in zip(total.same, more.same, strict=True)), max(total.peak, more.peak))


def _is_no_block(_: Any) -> NoReturn:
    raise AssertionError("a scale is looked for among the results, not among the inputs")


WHOLE_SCALE = Reduction(map=_is_no_block, combine=_combine, exact=True)
"""Comes after the reductions of the method."""


def scale_for(peak: float, held: bytes, encoding: Scaled) -> bytes:
    """The scale of numbers up to `peak`: the one that is `held`, as it is stored, if they fit it; else the smallest that they fit."""
    if encoding.scale not in ("F32", "BF16"):
        raise AssertionError(f"a scale for a whole tensor in {encoding.scale}")
    largest = LARGEST[encoding.code]
    scale = _value(held)
    if np.isfinite(scale) and scale > 0 and peak <= largest * scale:
        return held
    bits = np.float32(peak / largest).view(np.uint32)
    if encoding.scale == "BF16":
        bits = (bits >> np.uint32(16)) << np.uint32(16)
    step = np.uint32(1 << 16 if encoding.scale == "BF16" else 1)
    while float(bits.view(np.float32)) * largest < peak:
        bits += step
    return bytes(bits.tobytes()[4 - len(held) :])


def _value(held: bytes) -> float:
    return float(np.frombuffer(bytes(4 - len(held)) + held, np.float32)[0])
