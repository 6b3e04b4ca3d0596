"""Arithmetic on blocks of tensors, in place and in reused memory, with the same result on every device.

Each operation below rounds once: multiply and add are never fused (`torch.add(alpha=)` would fuse them), so CPU and
GPU give the same bytes. n is the number of elements of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def add_delta(acc: torch.Tensor, post: torch.Tensor, base: torch.Tensor, weight: float, scratch: Sequence[torch.Tensor]) -> None:
    """acc[n] += weight · (post[n] − base[n]), in place, using the three blocks[n] of `scratch` in acc's dtype.

    The delta is taken negated and subtracted: an element that post-training left alone then leaves acc alone to the
    last bit, even where acc is −0.0. For weight 1, acc == base gives exactly post. In float64 those elements are
    selected. In float32, which serves 16-bit tensors alone, it is enough (and faster) to carry along what rounding took
    from the subtraction, which Dekker's Fast2Sum gives exactly where it matters, for |base| ≥ |post|; that loses
    nothing but the sign of a zero, so a block with a −0.0 in post selects as well.
    """
    x, y, z = scratch
    minuend, subtrahend = (base, post) if weight > 0 else (post, base)
    y.copy_(minuend)
    x.copy_(subtrahend)
    if weight != 1:
        acc.sub_(y.sub_(x).mul_(abs(weight)))
        return
    wide = acc.dtype == torch.float64
    unchanged = torch.eq(acc, y) if wide or _has_negative_zero(post) else None
    torch.sub(y, x, out=z)
    acc.sub_(z)
    if not wide:
        acc.sub_(y.sub_(z).sub_(x))
    if unchanged is not None:
        torch.where(unchanged, x, acc, out=acc)


def _has_negative_zero(values: torch.Tensor) -> bool:
    """Whether −0.0 is among 16-bit values[n]: its bits are the least 16-bit integer, so one cheap reduction tells."""
    return values.view(torch.int16).amin().item() == torch.iinfo(torch.int16).min


def surely_below(acc: torch.Tensor, limit: float) -> bool:
    """Whether every element of acc[n] is a number that does not round to infinity in an output dtype with this `limit`.

    False may also mean that elements are merely large. The sum of squares bounds them all, and is the cheapest reduction
    that NaN and infinity do not get past.
    """
    return torch.dot(acc, acc).item() < min(limit * limit / 4, torch.finfo(acc.dtype).max)


def overflow_limit(dtype: torch.dtype) -> float:
    """The least magnitude that rounds to infinity in `dtype`, as a float64; infinity for float64 itself."""
    if dtype == torch.float64:
        return float("inf")
    info = torch.finfo(dtype)
    return info.max + info.eps / 2 * math.ldexp(1, math.frexp(info.max)[1] - 1)
