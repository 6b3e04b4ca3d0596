"""Arithmetic on blocks of tensors, in place and in reused memory, with the same result on every device.

Each operation below rounds once: multiply and add are never fused (`torch.add(alpha=)` would fuse them), so CPU and
GPU give the same bytes. n is the number of elements of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def add_delta(acc: torch.Tensor, post: torch.Tensor, base: torch.Tensor, weight: float, scratch: Sequence[torch.Tensor]) -> None:
    """acc[n] += weight · (post[n] − base[n]), in place, using three blocks of `scratch` in acc's dtype.

    The delta is taken negated and subtracted: an element that post-training left alone then leaves acc alone to the
    last bit, even where acc is −0.0. For weight 1, acc == base gives exactly post. In float64 those elements are
    selected; in float32, which serves 16-bit tensors alone, it is enough (and faster) to carry along what rounding took
    from the subtraction, which Dekker's Fast2Sum gives exactly where it matters, for |base| ≥ |post|.
    """
    n = acc.numel()
    x, y, z = (block[:n] for block in scratch)
    minuend, subtrahend = (base, post) if weight > 0 else (post, base)
    y.copy_(minuend)
    x.copy_(subtrahend)
    if weight == 1 and acc.dtype == torch.float64:
        unchanged = torch.eq(acc, y, out=z.view(torch.bool)[:n])
        acc.sub_(y.sub_(x))
        torch.where(unchanged, x, acc, out=acc)
    elif weight == 1:
        torch.sub(y, x, out=z)
        acc.sub_(z)
        acc.sub_(y.sub_(z).sub_(x))
    else:
        acc.sub_(y.sub_(x).mul_(abs(weight)))


def beyond(acc: torch.Tensor, limit: float) -> bool:
    """Whether any element of acc[n] is NaN, infinite, or rounds to infinity in an output dtype with this `limit`."""
    low, high = torch.aminmax(acc)
    return not (low.item() > -limit and high.item() < limit)


def overflow_limit(dtype: torch.dtype) -> float:
    """The least magnitude that rounds to infinity in `dtype`, as a float64; infinity for float64 itself."""
    if dtype == torch.float64:
        return float("inf")
    info = torch.finfo(dtype)
    return info.max + info.eps / 2 * math.ldexp(1, math.frexp(info.max)[1] - 1)
