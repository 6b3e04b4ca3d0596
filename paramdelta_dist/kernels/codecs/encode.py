"""Codes and scales for numbers. What a checkpoint has already is kept byte for byte, and its scale where that does not clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from paramdelta_dist.kernels.codecs.codes import ABOVE, BELOW, E2M1, E4M3, HIGHEST, NAN, ZERO, e2m1_of, e4m3_of, int4_of
from paramdelta_dist.kernels.codecs.grid import Grid, address, grid_of, rows_of_block, scale_row, whole_of
from paramdelta_dist.kernels.codecs.scaled import NUMBERS
from paramdelta_dist.kernels.codecs.scales import bits_at, fits, joined, least_bits, number_of, put_bits
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.kernels.jit import array_at, bytes_at, compiled, fused

SLACK = 1 + 2.0**-20
"""Numbers may exceed by so much what can be stored: no more than sums and a float32 are rounded by, and far less than codes are."""


class Stored(NamedTuple):
    """Elements [first, last) of a tensor as some checkpoint has them."""

    arrays: Sequence[memoryview]
    """The bytes of its arrays that decoding the elements needs."""
    numbers: memoryview
    """The elements, decoded."""


class Outcome(NamedTuple):
    """What became of the blocks of some elements."""

    passed: int
    """Blocks whose bytes are those of a checkpoint."""
    kept: int
    """Blocks with new codes for the base's scale."""
    rescaled: int
    """Blocks with new codes for a new scale."""
    nonfinite: int
    """Numbers in blocks with new codes that are not finite: NaN as a code where there is such a code, and zero where not."""
    misfit: int | None
    """The element, counted in the tensor, that exceeds the most what can be stored; None if all fit. It is stored as the nearest."""
    factor: float
    """By which it does, the number over the largest that can be stored; 1 if all fit."""


def encode(
    encoding: Scaled,
    numbers: memoryview,
    shape: tuple[int, ...],
    first: int,
    last: int,
    kept: Stored,
    others: Sequence[Stored],
    codes: memoryview,
    scales: memoryview,
) -> Outcome:
    """Write codes and scales of elements [first, last), which are whole grains or end with the tensor, from as many `numbers` of dtype
    `encoding.numbers`.

    Block by block, so that bytes do not depend on the cut: a block that equals, signs of zeros included, what one of `others` has gets the
    bytes of the first; else one that equals what the base has (`kept`), the base's; else codes are rounded to nearest, ties to even, with
    the base's scale, or where that would clip with the least that does not. A scale for all of the tensor, and with `whole` the number
    for it, remain the base's.
    The quotient that is rounded is number/scale in float64. Raises ValueError where the range or a length does not fit.
    """
    grid = grid_of(encoding, shape)
    check_range(encoding, shape, first, last, codes, scales)
    like = np.empty(0, NUMBERS[encoding.numbers])
    stored = [kept, *others]
    if any(data.nbytes != (last - first) * like.itemsize for data in (numbers, *(each.numbers for each in stored))):
        raise ValueError(f"{last - first} elements are to be encoded from more or fewer numbers")
    places = np.array([[address(each.arrays[0]), address(each.arrays[1]), address(each.numbers)] for each in stored], np.uint64)
    same = same_whole(stored)
    target, target_scales = np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8)
    counts = np.zeros(5, np.int64)
    factor = _encode(grid, like, address(numbers), places, same, whole_of(kept.arrays), first, last, target, target_scales, counts)
    return outcome_of(counts, factor)


def check_range(encoding: Scaled, shape: tuple[int, ...], first: int, last: int, codes: memoryview, scales: memoryview) -> None:
    """Raises ValueError where [first, last) cuts what is encoded together, or `codes` or `scales` are not as long as it needs."""
    grain = encoding.grain(shape) if encoding.rows else prod(shape)
    if first % grain or (last % grain and last != prod(shape)) or not first < last:
        raise ValueError(f"elements {first} to {last} are cut elsewhere than at multiples of {grain}, which are encoded together")
    for data, (start, stop) in zip((codes, scales), encoding.ranges(shape, first, last)[:2], strict=True):
        if data.nbytes != stop - start:
            raise ValueError(f"{data.nbytes} bytes are given for what takes {stop - start}")


def same_whole(stored: Sequence[Stored]) -> Any:
    """Which checkpoints have the number for all of the tensor that the first has: what they store means the same with it."""
    return np.array([[bytes(data) for data in each.arrays[2:]] == [bytes(data) for data in stored[0].arrays[2:]] for each in stored])


def outcome_of(counts: Any, factor: float) -> Outcome:
    """The outcome from what compiled functions count, whose last is the misfit."""
    *blocks, misfit = map(int, counts)
    return Outcome(blocks[0], blocks[1], blocks[2], blocks[3], misfit if factor > SLACK else None, factor if factor > SLACK else 1.0)


PASSED, KEPT, RESCALED, NONFINITE, MISFIT = range(5)


@compiled(error_model="numpy", _nrt=False)
def _encode(grid: Grid, like, numbers, places, same, whole, first, last, codes, scales, counts):
    """`encode`, from numbers at an address and stored[k] at places[k]: codes, scales, numbers. Returns the factor of the misfit."""
    factor = SLACK
    numbers = array_at(numbers, last - first, like)
    top = scale_row(grid, first)
    at = first
    while at < last:
        rows = rows_of_block(grid, at, last)
        for across in range(grid.across):
            begin = at - first + across * grid.columns
            columns = min(grid.columns, grid.width - across * grid.columns)
            place = (scale_row(grid, at) - top) * grid.across + across
            equal = _equal_to(grid, numbers, places, same, begin, rows, columns)
            if equal >= 0:
                copy_block(grid, places[equal], begin, rows, columns, place, codes, scales)
                counts[PASSED] += 1
            else:
                known = bytes_at(places[0, 1])
                part = numbers[begin : begin + (rows - 1) * grid.width + columns]
                exceeds = encode_block(grid, part, grid.width, rows, columns, known, place, whole, begin, codes, scales, counts)
                if exceeds > factor:
                    factor = exceeds
                    row, column = divmod(largest(part, rows, columns, grid.width), grid.width)
                    counts[MISFIT] = first + begin + row * grid.width + column
        at += rows * grid.width
    return factor


@numba.njit(error_model="numpy", _nrt=False)
def _equal_to(grid, numbers, places, same, begin, rows, columns):
    """The first of what is stored that has the numbers of a block, the base, which is the first, last; −1 if none has."""
    for step in range(1, len(places) + 1):
        k = step % len(places)
        if same[k]:
            stored = array_at(places[k, 2], len(numbers), numbers)
            equal = True
            for row in range(rows):
                start = begin + row * grid.width
                one, other = numbers[start : start + columns], stored[start : start + columns]
                for i in range(columns):
                    equal &= (one[i] == other[i]) & (math.copysign(1.0, one[i]) == math.copysign(1.0, other[i]))  # zeros have signs
                if not equal:
                    break
            if equal:
                return k
    return -1


@numba.njit(error_model="numpy", _nrt=False)
def copy_block(grid, place_of, begin, rows, columns, place, codes, scales):
    """Codes and scale of a block as they are stored at the addresses place_of[:2]."""
    stored = array_at(place_of[0], len(codes), codes)
    known = array_at(place_of[1], len(scales), scales)
    share = 1 if grid.code == E4M3 else 2
    for row in range(rows):
        start = (begin + row * grid.width) // share
        for i in range(np.uint64(start), np.uint64(start + columns // share)):
            codes[i] = stored[i]
    put_bits(grid.scale, scales, place, bits_at(grid.scale, known, place))


@numba.njit(error_model="numpy", _nrt=False)
def encode_block(grid, numbers, stride, rows, columns, known, place, whole, begin, codes, scales, counts):
    """New codes and a scale for numbers[row · stride + column]. Returns by which factor they exceed what can be stored."""
    low, high, nonfinite = _bounds(numbers, rows, columns, stride)
    bits, exceeds, what = choose_scale(grid, low, high, bits_at(grid.scale, known, place), whole)
    counts[what] += 1
    scale = joined(number_of(grid.scale, bits), grid.mode, whole)
    put_bits(grid.scale, scales, place, bits)
    counts[NONFINITE] += nonfinite
    for row in range(rows):
        part = numbers[row * stride : row * stride + columns]
        encode_row(grid.code, part, scale, nonfinite > 0, codes, begin + row * grid.width)
    return exceeds


@numba.njit(error_model="numpy", _nrt=False)
def choose_scale(grid, low, high, bits, whole):
    """The bits of the scale for numbers from `low` to `high`, those given or others; by which factor the numbers exceed what it can hold;
    and KEPT or RESCALED."""
    below, above = BELOW[grid.code], ABOVE[grid.code]
    scale = joined(number_of(grid.scale, bits), grid.mode, whole)
    if fits(scale, low, high, below, above):
        return bits, 1.0, KEPT
    if grid.fixed:
        if not 0 < scale < np.inf:
            return bits, (np.inf if max(high, -low) > 0 else 1.0), KEPT
        return bits, max(high / (above * scale), -low / (below * scale)), KEPT
    limit = HIGHEST[grid.code]
    bits = least_bits(grid.scale, grid.powers_of_two, max(high, -low), limit, grid.mode, whole)
    return bits, max(high, -low) / (limit * joined(number_of(grid.scale, bits), grid.mode, whole)), RESCALED


@numba.njit(error_model="numpy", _nrt=False)
def _bounds(numbers, rows, columns, width):
    """The least and the largest number, and how many are not finite, which do not count."""
    low, high = ordered(numbers[0]), ordered(numbers[0])
    for row in range(rows):
        part = numbers[row * width : row * width + columns]
        for i in range(columns):
            low, high = min(low, ordered(part[i])), max(high, ordered(part[i]))
    least, most = np.float64(from_ordered(low)), np.float64(from_ordered(high))
    if -np.inf < least and most < np.inf:
        return least, most, 0
    least, most, nonfinite = np.float64(np.inf), np.float64(-np.inf), 0
    for row in range(rows):
        for i in range(row * width, row * width + columns):
            if abs(numbers[i]) < np.inf:
                least, most = min(least, np.float64(numbers[i])), max(most, np.float64(numbers[i]))
            else:
                nonfinite += 1
    return (0.0, 0.0, nonfinite) if nonfinite == rows * columns else (least, most, nonfinite)


@numba.njit(error_model="numpy", _nrt=False)
def largest(numbers, rows, columns, width):
    """The position of the first number of those with the largest magnitude that are finite."""
    found, most = 0, -1.0
    for row in range(rows):
        for i in range(row * width, row * width + columns):
            if most < abs(numbers[i]) < np.inf:
                found, most = i, abs(numbers[i])
    return found


@numba.njit(error_model="numpy", _nrt=False)
def encode_row(code, numbers, scale, careful, codes, start):
    """Codes of numbers[n] that follow one another, from the one at `start` on; with four bits, both are even. `careful` where numbers
    are not all finite."""
    inverse = 1.0 / scale
    careful |= not 1e-150 < scale < 1e150  # where the quotient takes a division
    if code == E4M3:
        target = codes[start : start + len(numbers)]
        if careful:
            for i in range(len(numbers)):
                target[i] = _careful(code, numbers[i], scale)
        else:
            for i in range(len(numbers)):
                target[i] = e4m3_of(quotient(numbers[i], scale, inverse))
        return
    target = codes[start // 2 : start // 2 + len(numbers) // 2]
    if careful:
        for i in range(len(target)):
            target[i] = _careful(code, numbers[2 * i], scale) | _careful(code, numbers[2 * i + 1], scale) << np.uint8(4)
    elif code == E2M1:
        for i in range(len(target)):
            low = e2m1_of(quotient(numbers[2 * i], scale, inverse))
            target[i] = low | np.uint8(e2m1_of(quotient(numbers[2 * i + 1], scale, inverse)) << np.uint8(4))
    else:
        for i in range(len(target)):
            low = int4_of(quotient(numbers[2 * i], scale, inverse))
            target[i] = low | np.uint8(int4_of(quotient(numbers[2 * i + 1], scale, inverse)) << np.uint8(4))


@numba.njit(error_model="numpy", _nrt=False)
def _careful(code, number, scale):
    """The code of any number for any scale."""
    if not abs(number) < np.inf:
        return np.uint8(NAN if code == E4M3 else ZERO[code])
    near = np.float64(number) / scale if number != 0 and 0 < scale < np.inf else np.float64(number)
    if code == E4M3:
        return e4m3_of(near)
    return e2m1_of(near) if code == E2M1 else int4_of(near)


def quotient(number, scale, inverse):
    """number/scale, by way of 1/scale: that of float64, which is not rounded twice, for either type of number.

    Of float32 it is a float32, which is good enough to be rounded to a few bits. A number of 24 bits that is not a tie, that is a
    number of six bits times a scale of at most 11 (all have that whose numbers are float32), differs from it by more than
    2^−24 of itself, and so in float32; and one that is a tie is one after float64 is rounded to float32.
    """


@overload(quotient)
def _quotient(number, scale, inverse):
    def of_float32(number, scale, inverse):
        return np.float32(np.float64(number) * inverse)

    def of_float64(number, scale, inverse):
        near = number * inverse
        # Markstein: what is too much is exact, and the difference rounds as a division. In this order −0 remains −0.
        return fused(-fused(near, scale, -number), inverse, near)

    return of_float32 if number == types.float32 else of_float64


def ordered(number):
    """A signed integer in the order of numbers; NaN are beyond the infinities."""


@overload(ordered)
def _ordered(number):
    def of_float32(number):
        bits = np.float32(number).view(np.int32)
        return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))

    def of_float64(number):
        bits = np.float64(number).view(np.int64)
        return np.int64(bits ^ np.int64(np.int64(bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))

    return of_float32 if number == types.float32 else of_float64


def from_ordered(integer):
    """The number of which `ordered` makes an integer."""


@overload(from_ordered)
def _from_ordered(integer):
    def to_float32(integer):
        return np.int32(integer ^ np.int32(np.int32(integer >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)

    def to_float64(integer):
        return np.int64(integer ^ np.int64(np.int64(integer >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))).view(np.float64)

    return to_float32 if integer == types.int32 else to_float64
