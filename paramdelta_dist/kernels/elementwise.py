"""Arithmetic on blocks of tensors, in place and in reused memory, with the same result on every device.

Each operation below rounds once: multiply and add are never fused (`torch.add(alpha=)` would fuse them), so CPU and
GPU give the same bytes. n is the number of elements of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

SCRATCH = 3
"""Blocks that `add_delta` needs besides its accumulator."""


def add_delta(acc: torch.Tensor, post: torch.Tensor, base: torch.Tensor, weight: float, scratch: Sequence[torch.Tensor]) -> None:
    """acc[n] += weight · (post[n] − base[n]), in place, using the three blocks[n] of `scratch` in acc's dtype.

    The delta is taken negated and subtracted: an element that post-training left alone then leaves acc alone to the
    last bit, even where acc is −0.0. For weight 1, acc = base, to the sign of a zero, gives exactly post: those elements
    are selected. In float32, which serves 16-bit tensors alone, the others carry along what rounding took from the
    subtraction (Dekker's Fast2Sum for |base| ≥ |post|, Sterbenz's lemma otherwise).
    """
    x, y, z = scratch
    minuend, subtrahend = (base, post) if weight > 0 else (post, base)
    y.copy_(minuend)
    x.copy_(subtrahend)
    if weight != 1:
        acc.sub_(y.sub_(x).mul_(abs(weight)))
        return
    unchanged = _identical(acc, y)
    torch.sub(y, x, out=z)
    acc.sub_(z)
    if acc.dtype == torch.float32:
        acc.sub_(y.sub_(z).sub_(x))
    torch.where(unchanged, x, acc, out=acc)


def _identical(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Where one[n] and two[n] are the same number: zeros of the same sign, and never a NaN, whose bits mean nothing."""
    bits = torch.int64 if one.dtype == torch.float64 else torch.int32
    return torch.eq(one, two).logical_and_(torch.eq(one.view(bits), two.view(bits)))


def surely_below(acc: torch.Tensor, limit: float) -> bool:
    """Whether every element of acc[n] is a number that does not round to infinity in an output dtype with this `limit`.

    False may also mean that elements are merely large. The sum of squares bounds them all, and is the cheapest reduction
    that NaN and infinity do not get past.
    """
    return torch.dot(acc, acc).item() < min(limit * limit / 4, torch.finfo(acc.dtype).max)


def overflow_limit(dtype: torch.dtype, compute: torch.dtype) -> float:
    """The least magnitude in `compute` that rounds to infinity in `dtype`; infinity where `dtype` is float64.

    torch takes float64 to 16 bits by way of float32, which rounds what is just below the limit up to it.
    """
    if dtype == torch.float64:
        return math.inf
    info = torch.finfo(dtype)
    exponent = math.frexp(info.max)[1]
    limit = info.max + info.eps / 2 * math.ldexp(1, exponent - 1)
    if dtype.itemsize == 2 and compute == torch.float64:
        limit -= math.ldexp(1, exponent - 25)
    return limit
