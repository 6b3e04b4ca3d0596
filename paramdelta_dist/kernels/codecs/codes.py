"""Codes of a few bits and the numbers that they stand for, both ways, without a branch, for loops that a processor does many at a time.

A code is found by one addition: a number plus the power of two at which the last place of a float is that of the code rounds as the
code does, to nearest and ties to even, and leaves the code in the last bits of the sum. Numbers are float32 or float64; the functions
are told apart by that when they are compiled.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

E4M3, E2M1, INT4 = 0, 1, 2
KINDS = {"e4m3": E4M3, "e2m1": E2M1, "int4": INT4}
"""The codes of `encodings.CODE_BITS` as compiled functions know them."""
HIGHEST = (448.0, 6.0, 7.0)
"""The largest number of each kind."""
ABOVE, BELOW = (448.0, 6.0, 7.5), (448.0, 6.0, 8.5)
"""Magnitudes of the positive and of the negative numbers that are not clipped. Of integers also those that round to the last of them."""
NAN = 0x7F
"""Code of e4m3, which has no infinity; the other kinds have neither."""
ZERO = (0, 0, 8)

_u8, _u32, _u64, _i32, _i64, _f32, _f64 = np.uint8, np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
_REST32, _EXPONENT32 = _u32((1 << 31) - 1), _u32(0x7F800000)
_REST64, _EXPONENT64 = _u64((1 << 63) - 1), _u64(0x7FF << 52)


@numba.njit(_nrt=False)
def number_of_e4m3(code):
    """A byte as float32."""
    byte = _u32(code)
    rest = _u32(byte & _u32(0x7F))
    normal = _u32(_u32(rest << _u32(20)) + _u32(120 << 23)).view(_f32)
    subnormal = _f32(_u32(_u32(rest << _u32(20)) + _u32(121 << 23)).view(_f32) - _f32(2.0**-6))
    magnitude = subnormal if rest < _u32(8) else normal
    magnitude = _f32(np.nan) if rest == _u32(NAN) else magnitude
    return _u32(_f32(magnitude).view(_u32) | _u32(_u32(byte & _u32(0x80)) << _u32(24))).view(_f32)


@numba.njit(_nrt=False)
def number_of_e2m1(code):
    """The four bits of a byte below 16 as float32."""
    bits = _u32(code)
    rest = _u32(bits & _u32(7))
    normal = _u32(_u32(rest << _u32(22)) + _u32(126 << 23)).view(_f32)
    subnormal = _f32(_u32(_u32(rest << _u32(22)) + _u32(127 << 23)).view(_f32) - _f32(1))
    magnitude = subnormal if rest < _u32(2) else normal
    return _u32(_f32(magnitude).view(_u32) | _u32(_u32(bits & _u32(8)) << _u32(28))).view(_f32)


@numba.njit(_nrt=False)
def number_of_int4(code):
    """The four bits of a byte below 16 as float32."""
    return _f32(_i32(_i32(code) - _i32(8)))


def e4m3_of(number):
    """The byte of a finite number; of one beyond 448 that of 448."""


@overload(e4m3_of)
def _e4m3_of(number):
    def of_float32(number):
        bits = _f32(number).view(_u32)
        rest = _u32(min(_u32(bits & _REST32), _u32(0x43E00000)))
        unit = _u32(max(_u32(rest & _EXPONENT32), _u32(121 << 23)) + _u32(20 << 23))
        total = _f32(rest.view(_f32) + unit.view(_f32)).view(_u32)
        code = _u8(total + _u32(total >> _u32(20)) + _u32(152))
        return _u8(code | _u8(_u32(bits >> _u32(24)) & _u32(0x80)))

    def of_float64(number):
        bits = _f64(number).view(_u64)
        rest = _u64(min(_u64(bits & _REST64), _u64(0x407C000000000000)))
        unit = _u64(max(_u64(rest & _EXPONENT64), _u64((1023 - 6) << 52)) + _u64(49 << 52))
        total = _f64(rest.view(_f64) + unit.view(_f64)).view(_u64)
        code = _u8(total + _u64(total >> _u64(49)) + _u64(176))
        return _u8(code | _u8(_u64(bits >> _u64(56)) & _u64(0x80)))

    return of_float32 if number == types.float32 else of_float64


def e2m1_of(number):
    """The code of a finite number, below 16; of one beyond 6 that of 6."""


@overload(e2m1_of)
def _e2m1_of(number):
    def of_float32(number):
        bits = _f32(number).view(_u32)
        rest = _u32(min(_u32(bits & _REST32), _u32(0x40C00000)))
        unit = _u32(max(_u32(rest & _EXPONENT32), _u32(127 << 23)) + _u32(22 << 23))
        total = _f32(rest.view(_f32) + unit.view(_f32)).view(_u32)
        code = _u32(_u32(total + _u32(total >> _u32(22)) + _u32(6)) & _u32(7))
        return _u8(code | _u32(_u32(bits >> _u32(28)) & _u32(8)))

    def of_float64(number):
        bits = _f64(number).view(_u64)
        rest = _u64(min(_u64(bits & _REST64), _u64(0x4018000000000000)))
        unit = _u64(max(_u64(rest & _EXPONENT64), _u64(1023 << 52)) + _u64(51 << 52))
        total = _f64(rest.view(_f64) + unit.view(_f64)).view(_u64)
        code = _u64(_u64(total + _u64(total >> _u64(51)) + _u64(12)) & _u64(7))
        return _u8(code | _u64(_u64(bits >> _u64(60)) & _u64(8)))

    return of_float32 if number == types.float32 else of_float64


def int4_of(number):
    """The code of a finite number, below 16; of one beyond −8 or 7 that of the nearer."""


@overload(int4_of)
def _int4_of(number):
    def of_float32(number):
        low = number if number > _f32(-8) else _f32(-8)
        near = low if low < _f32(7) else _f32(7)
        return _u8(_u32(_f32(near + _f32(1.5 * 2**23)).view(_u32) + _u32(8)) & _u32(15))

    def of_float64(number):
        low = number if number > -8.0 else -8.0
        near = low if low < 7.0 else 7.0
        return _u8(_u64(_f64(near + _f64(1.5 * 2**52)).view(_u64) + _u64(8)) & _u64(15))

    return of_float32 if number == types.float32 else of_float64
