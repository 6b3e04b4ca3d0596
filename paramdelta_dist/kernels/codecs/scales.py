"""Scales as they are stored and the numbers that they stand for, and the least scale that does not clip. All of it one scale at a time."""

from __future__ import annotations

import numba
import numpy as np

F32, F64, BF16, F16, F8_E4M3, E8M0 = range(6)
KINDS = {"F32": F32, "F64": F64, "BF16": BF16, "F16": F16, "F8_E4M3": F8_E4M3, "E8M0": E8M0}
"""The scales of `encodings.SCALE_BYTES` as compiled functions know them."""
ALONE, MULTIPLIES, DIVIDES = range(3)
WHOLE = {"": ALONE, "multiplies": MULTIPLIES, "divides": DIVIDES}
"""What a number for all of a tensor does to a scale, likewise."""

_BYTES = (4, 8, 2, 2, 1, 1)
_FRACTION = (23, 52, 7, 10, 3, 0)
"""Bits of the fraction of each kind."""
_BIAS = (127, 1023, 127, 15, 7, 127)
_LARGEST = (0x7F7FFFFF, 0x7FEFFFFFFFFFFFFF, 0x7F7F, 0x7BFF, 0x7E, 0xFE)
"""The bits of the largest finite number of each kind."""

_u8, _i64, _u64, _f64 = np.uint8, np.int64, np.uint64, np.float64


@numba.njit(error_model="numpy", _nrt=False)
def bits_at(kind, scales, place):
    """The bits of the scale at a place, of bytes in any alignment; as int64, as bits of scales always are here."""
    at = _u64(place) * _u64(_BYTES[kind])
    if kind in (E8M0, F8_E4M3):
        return _i64(scales[at])
    bits = _u64(scales[at]) | _u64(scales[at + _u64(1)]) << _u64(8)
    if kind in (F32, F64):
        bits |= _u64(scales[at + _u64(2)]) << _u64(16) | _u64(scales[at + _u64(3)]) << _u64(24)
    if kind == F64:
        for byte in range(4, 8):
            bits |= _u64(scales[at + _u64(byte)]) << _u64(8 * byte)
    return _i64(bits)


@numba.njit(error_model="numpy", _nrt=False)
def put_bits(kind, scales, place, bits):
    """Store the bits of a scale."""
    size = _BYTES[kind]
    for byte in range(size):
        scales[place * size + byte] = _u8(_u64(bits) >> _u64(8 * byte))


@numba.njit(error_model="numpy", _nrt=False)
def number_of(kind, bits):
    """What a scale's bits stand for, exactly, as float64."""
    if kind == E8M0:
        return np.nan if bits == 255 else _u64((bits + (1023 - 127)) << 52).view(_f64)
    if kind == F64:
        return _u64(bits).view(_f64)
    fraction, bias = _FRACTION[kind], _BIAS[kind]
    sign = (bits >> (8 * _BYTES[kind] - 1)) & 1
    rest = bits & ((1 << (8 * _BYTES[kind] - 1)) - 1)
    if rest > _LARGEST[kind]:
        infinite = kind != F8_E4M3 and rest == (rest >> fraction) << fraction
        magnitude = np.inf if infinite else np.nan
    elif rest >> fraction:
        magnitude = _u64(((rest >> fraction) - bias + 1023) << 52 | (rest & ((1 << fraction) - 1)) << (52 - fraction)).view(_f64)
    else:
        magnitude = _f64(rest) * _u64((1 - bias - fraction + 1023) << 52).view(_f64)
    return -magnitude if sign else magnitude


@numba.njit(error_model="numpy", _nrt=False)
def scale_at(kind, scales, place, mode, whole):
    """The number that the codes of a block are multiplied with, as float64: its scale and, by `mode`, that of the tensor."""
    return joined(number_of(kind, bits_at(kind, scales, place)), mode, whole)


@numba.njit(error_model="numpy", _nrt=False)
def joined(scale, mode, whole):
    """A scale and the number for the tensor as one."""
    if mode == MULTIPLIES:
        return scale * whole
    return scale / whole if mode == DIVIDES else scale


@numba.njit(error_model="numpy", _nrt=False)
def fits(scale, low, high, below, above):
    """Whether numbers from `low` to `high` are not clipped, where `-below` to `above` times the scale are not."""
    return 0 < scale < np.inf and high <= above * scale and -low <= below * scale


@numba.njit(error_model="numpy", _nrt=False)
def least_bits(kind, powers_of_two, largest, limit, mode, whole):
    """The bits of the least scale for which no number up to `largest` exceeds `limit` times it; the largest where none is enough.

    For all zeros 1, which is as good as any.
    """
    if not largest > 0:
        return _bits_below(kind, 1.0)
    step = 1 << _FRACTION[kind] if powers_of_two and kind != E8M0 else 1
    top = _LARGEST[kind] // step * step
    least = 0 if kind == E8M0 else step
    unit = joined(1.0, mode, whole)
    bits = min(max(_bits_below(kind, largest / limit / unit) // step * step, least), top)
    while bits < top and not limit * joined(number_of(kind, bits), mode, whole) >= largest:
        bits += step
    while bits > least and limit * joined(number_of(kind, bits - step), mode, whole) >= largest:
        bits -= step
    return bits


@numba.njit(error_model="numpy", _nrt=False)
def _bits_below(kind, number):
    """The bits of the largest scale that is not above a positive number, roughly: a step or two away from it at most."""
    if not number < number_of(kind, _i64(_LARGEST[kind])):
        return _i64(_LARGEST[kind])
    fraction, bias = _FRACTION[kind], _BIAS[kind]
    bits = (_i64(_f64(number).view(_u64)) >> (52 - fraction)) - ((1023 - bias) << fraction)
    if bits >> fraction > 0 or kind == F64:
        return bits
    return _i64(number * _u64((bias + fraction - 1 + 1023) << 52).view(_f64)) if kind != E8M0 else _i64(0)
