"""base + Σ weight · (post − its base) on a CPU: one compiled pass over a run, by way of a block that stays in the core's first cache.

numba compiles a variant for the dtypes at hand when it first meets them and keeps it on disk. Nothing here needs torch, whose
import takes longer than many a merge. Every operation is that of `elementwise.add_delta` and rounds by itself (numba fuses no
multiply and add unless told to), so that the bytes are those of a GPU. The 16-bit floats, which numba does not know, are taken
apart as integers: a uint16 holds a bfloat16 here and an int16 a float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from paramdelta_dist.kernels.jit import compiled, pointer
from paramdelta_dist.kernels.raw import RawElements

L1_BLOCK = 512
"""Elements that are summed at a time: few, so that a processor, which fetches ahead within a page, keeps up every input."""
PIECE = 1 << 16
"""Elements that are brought to one dtype at a time, where the inputs of deltas have several."""


_STORED: dict[str, Any] = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32, "F64": np.float64}


def add_deltas(
    out: RawElements, base: RawElements, deltas: Sequence[tuple[RawElements, RawElements]], weights: Sequence[float]
) -> tuple[int, int]:
    """Write base + Σ weight · (post − old) to `out`, the (post, old) pairs and their weights in order; all of one length.

    Computed in float32 where inputs and output have 16 bits, in float64 where one of them is wider, and rounded once at the
    end. Returns how many elements are not finite in `out`'s dtype and the position of the first (0 if there is none). All
    are written either way, every NaN as the positive quiet one without payload. Raises ValueError where lengths differ.
    """
    inputs = [base, *(values for pair in deltas for values in pair)]
    compute = np.float64 if any(_STORED[values.dtype]().itemsize > 2 for values in (out, *inputs)) else np.float32
    target, source = _array(out), _array(base)
    if any(len(values.data) // _STORED[values.dtype]().itemsize != len(target) for values in inputs):
        raise ValueError(f"{len(target)} elements are to be made of inputs that have more or fewer")  # they come as mere addresses
    if len({values.dtype for values in inputs[1:]}) <= 1:
        finite = _sum(target, source, [(_array(post), _array(old)) for post, old in deltas], weights, compute)
    else:
        finite = True
        for start in range(0, len(target), PIECE):
            piece = slice(start, start + PIECE)
            pairs = [(_widened(post, piece, compute), _widened(old, piece, compute)) for post, old in deltas]
            finite &= _sum(target[piece], source[piece], pairs, weights, compute)
    return (0, 0) if finite else _tally(target)


def is_finite(values: RawElements, place: int) -> bool:
    """Whether one element is neither NaN nor infinite."""
    return bool(np.isfinite(_widened(values, slice(place, place + 1), np.float64)[0]))


def _array(values: RawElements) -> Any:
    stored = _STORED[values.dtype]
    array = np.frombuffer(values.data, np.uint8)
    return (array if array.ctypes.data % stored().itemsize == 0 else array.copy()).view(stored)


def _widened(values: RawElements, piece: slice, compute: Any) -> Any:
    """Some of the elements as numbers."""
    stored = _array(values)[piece]
    if values.dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(compute)
    with np.errstate(invalid="ignore"):  # of a NaN that signals
        return (stored.view(np.float16) if values.dtype == "F16" else stored).astype(compute)


def _sum(out: Any, base: Any, deltas: Sequence[tuple[Any, Any]], weights: Sequence[float], compute: Any) -> bool:
    """`add_deltas` for arrays, those of deltas all of one dtype. Returns whether all results are finite."""
    like = np.empty(0, deltas[0][0].dtype if deltas else base.dtype)
    # as in add_delta, deltas are taken negated and subtracted
    pairs = [(old, post) if weight > 0 else (post, old) for (post, old), weight in zip(deltas, weights, strict=True)]
    places = np.array([[array.ctypes.data for array in pair] for pair in pairs], np.uint64).reshape(-1, 2)
    units = np.array([weight == 1 for weight in weights], np.bool_)
    magnitudes = np.abs(np.array(weights, np.float64)).astype(compute)
    block = np.empty(L1_BLOCK, compute)
    return bool(_sum_blocks(out, np.empty(0, base.dtype), np.uint64(base.ctypes.data), like, places, magnitudes, units, block))


@compiled()
def _sum_blocks(out, base_like, base, like, places, magnitudes, units, acc):
    """out[n] = base[n] − Σ magnitude · (minuend[n] − subtrahend[n]), the latter two at places[k, 2], with elements like those of `like`.

    Whether all of it is finite. Inputs come as addresses.
    """
    finite = True
    for start in range(0, len(out), len(acc)):
        target = out[start : start + len(acc)]
        n = len(target)
        block = acc[:n]
        source = numba.carray(pointer(base + np.uint64(start * base_like.itemsize)), n, base_like.dtype)
        for i in range(n):
            block[i] = _number(source[i])
        offset = np.uint64(start * like.itemsize)
        for k in range(len(places)):
            minuend = numba.carray(pointer(places[k, 0] + offset), n, like.dtype)
            subtrahend = numba.carray(pointer(places[k, 1] + offset), n, like.dtype)
            _subtract(block, minuend, subtrahend, magnitudes[k], units[k])
        good = True
        for i in range(n):
            element = _rounded(block[i], target[i])
            target[i] = element
            good &= _is_finite(element)
        finite &= good
    return finite


@numba.njit
def _subtract(acc, minuend, subtrahend, magnitude, unit):
    if unit:
        for i in range(len(acc)):
            y, x = acc.dtype.type(_number(minuend[i])), acc.dtype.type(_number(subtrahend[i]))
            acc[i] = x if acc[i] == y and _bits(acc[i]) == _bits(y) else _less_difference(acc[i], y, x)
    else:
        for i in range(len(acc)):
            y, x = acc.dtype.type(_number(minuend[i])), acc.dtype.type(_number(subtrahend[i]))
            acc[i] = acc[i] - (y - x) * magnitude


@compiled()
def _tally(out):
    """How many elements are not finite, and the first of them."""
    count = first = 0
    for i in range(len(out)):
        if not _is_finite(out[i]):
            first = i if count == 0 else first
            count += 1
    return count, first


# What follows is told apart by the types of the arguments when it is compiled; numba turns arithmetic with plain numbers into
# 64 bits, so all constants of integer arithmetic have their type.

_u16, _u32, _u64, _f32, _f64 = np.uint16, np.uint32, np.uint64, np.float32, np.float64
_SIGN16, _REST16, _REST32, _REST64 = _u32(1 << 15), _u32((1 << 15) - 1), _u32((1 << 31) - 1), _u64((1 << 63) - 1)
_INF_BF16, _INF_F16, _INF_F32, _INF_F64 = _u16(0x7F80), _u16(0x7C00), _u32(0x7F800000), _u64(0x7FF << 52)
_NAN_BF16, _NAN_F16, _NAN_F32, _NAN_F64 = _u16(0x7FC0), np.int16(0x7E00), _f32(np.nan), _f64(np.nan)
_1, _13, _16 = _u32(1), _u32(13), _u32(16)
_BELOW_HALF_BF16, _BELOW_HALF_F16 = _u32((1 << 15) - 1), _u32((1 << 12) - 1)
"""Just less than half a unit in the last place that is kept of a float32: with one more where that place is odd, ties go to even."""
_REBIAS = _u32((127 - 15) << 23)
"""Between the exponents of float16 and float32."""
_TOO_LARGE_F16, _LEAST_F16 = _u32((127 + 16) << 23), _u32((127 - 14) << 23)
"""2^16, and 2^−14, the least normal float16; as bits of float32."""
_HALF, _HALF_BITS = _f32(0.5), _u32(126 << 23)
"""Its last place as a float32 is that of a subnormal float16: a sum with it is rounded there."""
_UP = _f32(2.0**112)
"""Brings the exponent of a float16, subnormal ones too, to that of a float32."""


def _number(element):
    """An element as a float."""


@overload(_number)
def _number_of(element):
    def bfloat16(element):
        return _u32(_u32(element) << _16).view(_f32)

    def float16(element):
        bits = _u32(_u16(element))
        rest = _u32((bits & _REST16) << _13)
        finite = _f32(rest.view(_f32) * _UP).view(_u32)
        rest = _u32(rest | _INF_F32) if rest >= _u32(_u32(_INF_F16) << _13) else finite
        return _u32(rest | ((bits & _SIGN16) << _16)).view(_f32)

    return {types.uint16: bfloat16, types.int16: float16}.get(element, lambda element: element)


def _rounded(number, element):
    """A float as an element of the type of `element`, in which it may have to be rounded or be infinite."""


@overload(_rounded)
def _rounded_to(number, element):
    def bfloat16(number, element):
        bits = _f32(number).view(_u32)
        rounded = _u16(_u32(bits + _BELOW_HALF_BF16 + ((bits >> _16) & _1)) >> _16)
        return _NAN_BF16 if _u32(bits & _REST32) > _INF_F32 else rounded

    def float16(number, element):
        bits = _f32(number).view(_u32)
        rest = _u32(bits & _REST32)
        rounded = _u32(_u32(rest - _REBIAS + _BELOW_HALF_F16 + ((rest >> _13) & _1)) >> _13)
        subnormal = _u32(_f32(rest.view(_f32) + _HALF).view(_u32) - _HALF_BITS)
        rounded = subnormal if rest < _LEAST_F16 else rounded
        rounded = _u32(_INF_F16) if rest >= _TOO_LARGE_F16 else rounded
        return _NAN_F16 if rest > _INF_F32 else np.int16(rounded | ((bits >> _16) & _SIGN16))

    def float32(number, element):
        return _NAN_F32 if number != number else _f32(number)

    def float64(number, element):
        return _NAN_F64 if number != number else _f64(number)

    return {types.uint16: bfloat16, types.int16: float16, types.float32: float32}.get(element, float64)


def _is_finite(element):
    """Whether an element is neither NaN nor infinite."""


@overload(_is_finite)
def _is_finite_of(element):
    def bfloat16(element):
        return _u16(element & _REST16) < _INF_BF16

    def float16(element):
        return _u16(_u16(element) & _REST16) < _INF_F16

    def float32(element):
        return _u32(_bits(element) & _REST32) < _INF_F32

    def float64(element):
        return _u64(_bits(element) & _REST64) < _INF_F64

    return {types.uint16: bfloat16, types.int16: float16, types.float32: float32}.get(element, float64)


def _bits(number):
    """Of a float, as an unsigned integer."""


@overload(_bits)
def _bits_of(number):
    if number == types.float32:
        return lambda number: _f32(number).view(_u32)
    return lambda number: _f64(number).view(_u64)


def _less_difference(acc, y, x):
    """acc − (y − x)."""


@overload(_less_difference)
def _less_difference_of(acc, y, x):
    def with_remainder(acc, y, x):
        z = y - x
        return (acc - z) - ((y - z) - x)

    return with_remainder if acc == types.float32 else lambda acc, y, x: acc - (y - x)
