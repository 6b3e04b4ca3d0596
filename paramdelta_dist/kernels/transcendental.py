"""exp and log in float64 out of operations that round alike everywhere: torch's own differ in the last bit between devices."""

from __future__ import annotations

import math

import torch

_LN2_HIGH = 0.693147180369123816490
"""Its last 32 bits are zero, so that small multiples of it are exact."""
_LN2_LOW = 1.90821492927058770002e-10
_EXP = tuple(1 / math.factorial(i) for i in range(13, -1, -1))
_LOG = tuple(1 / i for i in range(23, 0, -2))
_LOWEST = -708.0


def exp_of_negative(x: torch.Tensor) -> torch.Tensor:
    """e^x of float64 x[...] <= 0, within a few units of the last place; what is below e^-708 comes out as that."""
    x = x.clamp(min=_LOWEST)
    turns = (x * (1 / math.log(2))).round_()
    rest = (x - turns * _LN2_HIGH).sub_(turns * _LN2_LOW)
    power = torch.full_like(x, _EXP[0])
    for coefficient in _EXP[1:]:
        power.mul_(rest).add_(coefficient)
    return power.mul_(turns.to(torch.int64).add_(1023).bitwise_left_shift_(52).view(torch.float64))


def log(x: torch.Tensor) -> torch.Tensor:
    """The natural logarithm of float64 x[...], positive normal numbers, within a few units of the last place."""
    bits = x.contiguous().view(torch.int64)
    mantissa = ((bits & ((1 << 52) - 1)) | (1023 << 52)).view(torch.float64)
    large = mantissa > math.sqrt(2)
    exponent = ((bits >> 52) - 1023 + large).to(torch.float64)
    mantissa = torch.where(large, mantissa * 0.5, mantissa)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = torch.full_like(s, _LOG[0])
    for coefficient in _LOG[1:]:
        series.mul_(square).add_(coefficient)
    found = (series.mul_(s).mul_(2) + exponent * _LN2_LOW).add_(exponent * _LN2_HIGH)
    return found.masked_fill_(x.isnan(), math.nan)
