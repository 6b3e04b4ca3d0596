"""Loops over the elements of a piece of a row, each of which a processor does many at a time: from codes to sums and back to codes.

A piece is `lanes` bytes of codes. Where a byte holds two, the numbers of its low halves come first and those of the high halves behind
them, so that nothing has to be interleaved; arrays of scales have an element for each byte. Every loop writes one array and reads few,
and its elements have one width where that can be: that is what compilers make good code of.
"""

from __future__ import annotations

import numba
import numpy as np

from paramdelta_dist.kernels.codecs.codes import E2M1, E4M3, NAN, e2m1_of, e4m3_of, int4_of
from paramdelta_dist.kernels.codecs.encode import ordered, quotient
from paramdelta_dist.kernels.jit import float16

UNIT = (2.0**8, 2.0**14, 1.0)
"""The number of each kind of code over the one that `numbers` gives for it."""

_u8, _i8, _u16, _i16, _u32, _f32, _f64 = np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.float32, np.float64


@numba.njit
def has_nan(codes, start, lanes):
    """Whether there is a NaN among codes of e4m3."""
    most = _u8(0)
    for i in range(lanes):
        most = _u8(max(most, _u8(codes[start + i] & _u8(0x7F))))
    return most == _u8(NAN)


@numba.njit
def numbers(kind, codes, start, lanes, bits, out, model):
    """out[model, n] = codes from `start` on as float32, divided by UNIT. By way of float16, which has the exponents of all kinds, in
    bits[n]."""
    if kind == E4M3:
        for i in range(lanes):
            bits[i] = _u16(_u16(_i16(_i16(_i8(codes[start + i])) << _i16(7))) & _u16(0xBF80))
        for i in range(lanes):
            out[model, i] = float16(bits[i])
        return
    if kind == E2M1:
        for i in range(lanes):
            byte = _u16(codes[start + i])
            bits[i] = _u16(_u16(_u16(byte << _u16(9)) & _u16(0xE00)) | _u16(_u16(byte << _u16(12)) & _u16(0x8000)))
        for i in range(lanes):
            byte = _u16(codes[start + i])
            bits[lanes + i] = _u16(_u16(_u16(byte << _u16(5)) & _u16(0xE00)) | _u16(_u16(byte << _u16(8)) & _u16(0x8000)))
        for i in range(2 * lanes):
            out[model, i] = float16(bits[i])
        return
    for i in range(lanes):  # the float16 of 1024 and more by the integer
        bits[i] = _u16(_u16(codes[start + i] & _u8(15)) | _u16(0x6400))
    for i in range(lanes):
        bits[lanes + i] = _u16(_u16(codes[start + i] >> _u8(4)) | _u16(0x6400))
    for i in range(2 * lanes):
        out[model, i] = _f32(float16(bits[i]) - _f32(1032))


@numba.njit
def start_sum(halves, lanes, stored, scales, out, minuend, subtrahend):
    """out[n] = base − (minuend − subtrahend), models of stored[model, n] · scales[model, lane]; as in `add_deltas` with weight 1."""
    for half in range(halves):
        at = half * lanes
        for i in range(lanes):
            acc = out.dtype.type(stored[0, at + i]) * scales[0, i]
            y = out.dtype.type(stored[minuend, at + i]) * scales[minuend, i]
            x = out.dtype.type(stored[subtrahend, at + i]) * scales[subtrahend, i]
            out[at + i] = x if ordered(acc) == ordered(y) else acc - (y - x)


@numba.njit
def only_base(halves, lanes, stored, scales, out):
    """out[n] = base."""
    for half in range(halves):
        at = half * lanes
        for i in range(lanes):
            out[at + i] = out.dtype.type(stored[0, at + i]) * scales[0, i]


@numba.njit
def add_to_sum(halves, lanes, stored, scales, out, minuend, subtrahend):
    """out[n] −= minuend − subtrahend, likewise."""
    for half in range(halves):
        at = half * lanes
        for i in range(lanes):
            acc = out[at + i]
            y = out.dtype.type(stored[minuend, at + i]) * scales[minuend, i]
            x = out.dtype.type(stored[subtrahend, at + i]) * scales[subtrahend, i]
            out[at + i] = x if ordered(acc) == ordered(y) else acc - (y - x)


@numba.njit
def add_weighted(halves, lanes, stored, scales, out, minuend, subtrahend, magnitude):
    """out[n] −= (minuend − subtrahend) · magnitude, as in `add_deltas` with another weight."""
    for half in range(halves):
        at = half * lanes
        for i in range(lanes):
            y = out.dtype.type(stored[minuend, at + i]) * scales[minuend, i]
            x = out.dtype.type(stored[subtrahend, at + i]) * scales[subtrahend, i]
            out[at + i] = out[at + i] - (y - x) * magnitude


@numba.njit
def note_differences(halves, lanes, stored, scales, model, found, start, bit, differs):
    """Set a bit of differs[n] where found[start + n] is not the number of a model."""
    for half in range(halves):
        at = half * lanes
        for i in range(lanes):
            other = scales.dtype.type(stored[model, at + i]) * scales[model, i]
            differs[at + i] |= _u32(bit) if scales.dtype.type(found[start + at + i]) != other else _u32(0)


@numba.njit
def keep(count, total, found, start):
    """found[start + n] = total[n], rounded to its type."""
    for i in range(count):
        found[start + i] = total[i]


@numba.njit
def bounds(found, start, count):
    """The least and the largest of `count` numbers, as `ordered` makes integers of them."""
    low = high = ordered(found[start])
    for i in range(count):
        low, high = min(low, ordered(found[start + i])), max(high, ordered(found[start + i]))
    return low, high


@numba.njit
def any_bits(differs, start, count):
    """All bits that are set in `count` elements."""
    bits = _u32(0)
    for i in range(count):
        bits |= differs[start + i]
    return bits


@numba.njit
def put_codes(kind, lanes, found, start, scales, inverses, near, codes, at):
    """Codes of found[start + n] / scale, each scale a float64. near[n] is overwritten."""
    if found.dtype.type(0.1) == 0.1:
        _put_codes_of_float64(kind, lanes, found, start, scales, inverses, codes, at)
        return
    for i in range(lanes):
        near[i] = _f32(quotient(found[start + i], scales[i], inverses[i]))
    if kind == E4M3:
        for i in range(lanes):
            codes[at + i] = e4m3_of(near[i])
        return
    for i in range(lanes):
        near[lanes + i] = _f32(quotient(found[start + lanes + i], scales[i], inverses[i]))
    if kind == E2M1:
        for i in range(lanes):
            codes[at + i] = _u8(e2m1_of(near[i]) | _u8(e2m1_of(near[lanes + i]) << _u8(4)))
    else:
        for i in range(lanes):
            codes[at + i] = _u8(int4_of(near[i]) | _u8(int4_of(near[lanes + i]) << _u8(4)))


@numba.njit
def _put_codes_of_float64(kind, lanes, found, start, scales, inverses, codes, at):
    if kind == E4M3:
        for i in range(lanes):
            codes[at + i] = e4m3_of(quotient(found[start + i], scales[i], inverses[i]))
    elif kind == E2M1:
        for i in range(lanes):
            low = e2m1_of(quotient(found[start + i], scales[i], inverses[i]))
            codes[at + i] = _u8(low | _u8(e2m1_of(quotient(found[start + lanes + i], scales[i], inverses[i])) << _u8(4)))
    else:
        for i in range(lanes):
            low = int4_of(quotient(found[start + i], scales[i], inverses[i]))
            codes[at + i] = _u8(low | _u8(int4_of(quotient(found[start + lanes + i], scales[i], inverses[i])) << _u8(4)))
