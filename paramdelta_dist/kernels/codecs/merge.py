"""base + Σ weight · (post − its base) where all are stored by one scheme: from codes to codes in one pass, by way of a core's own caches.

The bytes are those of decoding, `sum_cpu.add_deltas` and encoding, one after the other. A strip of blocks is summed at a time, and then
encoded block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from paramdelta_dist.kernels.codecs.codes import ABOVE, BELOW, E2M1, E4M3
from paramdelta_dist.kernels.codecs.encode import (
    KEPT,
    MISFIT,
    PASSED,
    SLACK,
    Outcome,
    check_range,
    choose_scale,
    copy_block,
    encode_block,
    largest,
    outcome_of,
)
from paramdelta_dist.kernels.codecs.grid import Grid, address, grid_of, rows_of_block, scale_row, whole_of
from paramdelta_dist.kernels.codecs.scaled import NUMBERS, decode_row
from paramdelta_dist.kernels.codecs.scales import bits_at, fits, joined, number_of, put_bits, scale_at
from paramdelta_dist.kernels.codecs.vectors import (
    DIFFERS_FROM_BASE,
    DIFFERS_FROM_POST,
    LANES,
    NOT_A_NUMBER,
    UNIT,
    any_sum_e2m1,
    any_sum_e4m3,
    any_sum_int4,
    largest_of_lanes,
    least_of_lanes,
    narrow_sum_e2m1,
    narrow_sum_e4m3,
    narrow_sum_int4,
    put_e2m1,
    put_e4m3,
    put_int4,
    sum_e2m1,
    sum_e4m3,
    sum_int4,
)
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.kernels.jit import bytes_at, compiled, prefetch

PIECE = 1 << 9
"""Columns of a strip, where its blocks are not wider."""
AHEAD = 2
"""Rows of a strip that are asked for before they are needed: a processor does not guess what lies so far apart."""
_STEPS = {"e4m3": 448 * 2.0**9, "e2m1": 12.0, "int4": 8.0}
"""The largest number of each kind of code over the least step."""
_LEAST, _MOST = 2.0**-100, 2.0**100
"""Scales that cannot bring anything near the ends of float32, neither alone nor by way of one another."""
STRIP = 1 << 16
"""Numbers of a strip, where its blocks are not larger: half a megabyte, which stays in a core's second cache."""


class Merged(NamedTuple):
    """What became of the blocks, and which results are no numbers."""

    outcome: Outcome
    nonfinite: int
    """Elements of the sum that are not finite."""
    place: int
    """The first of them, counted from the first of the range; 0 if there is none."""


def strip_columns(encoding: Scaled, shape: tuple[int, ...]) -> int:
    """Columns that are summed before they are encoded: whole blocks, or all there are."""
    grid = grid_of(encoding, shape)
    blocks = max(1, min(STRIP // min(grid.rows, grid.height), PIECE) // grid.columns)
    return min(grid.width, blocks * grid.columns)


def merge_scaled(
    encoding: Scaled,
    shape: tuple[int, ...],
    first: int,
    last: int,
    base: Sequence[memoryview],
    deltas: Sequence[tuple[Sequence[memoryview], Sequence[memoryview]]],
    weights: Sequence[float],
    codes: memoryview,
    scales: memoryview,
) -> Merged:
    """Write codes and scales of elements [first, last) of base + Σ weight · (post − old), the (post, old) pairs and their weights in order.

    All are arrays of one scheme and shape, the bytes of them that decoding the elements needs. Bytes and outcome are those of `decode` of
    each, `sum_cpu.add_deltas` to `encoding.numbers`, and `encode` with the base as `kept` and the posts as `others`. Takes memory for
    `strip_columns` of a block row in `encoding.numbers`. Raises ValueError as those do.
    """
    if not encoding.rows:
        raise ValueError("one scale for all of a tensor is decided before its first code: its numbers are not merged in one pass")
    grid = grid_of(encoding, shape)
    check_range(encoding, shape, first, last, codes, scales)
    models = [base, *(arrays for pair in deltas for arrays in pair)]
    places = np.array([[address(arrays[0]), address(arrays[1])] for arrays in models], np.uint64)
    wholes = np.array([whole_of(arrays) for arrays in models])
    posts = [0, *range(1, len(models), 2)]
    same = np.array([[bytes(data) for data in models[post][2:]] == [bytes(data) for data in base[2:]] for post in posts])
    width = strip_columns(encoding, shape)
    numbers = np.empty(min(grid.rows, grid.height) * width, NUMBERS[encoding.numbers])
    counts = np.zeros(7, np.int64)
    terms = _Deltas.of(encoding, weights)
    room = _Room.of(len(models), -(-width // grid.columns), numbers.dtype)
    scratch = np.empty(grid.columns, numbers.dtype), np.empty((3, grid.columns), np.float64)
    target, target_scales = np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8)
    factor = _merge(grid, places, wholes, same, terms, first, last, target, target_scales, numbers, width, room, scratch, counts)
    return Merged(outcome_of(counts[:5], factor), int(counts[_TOTAL]), int(counts[_PLACE]))


_TOTAL, _PLACE = 5, 6


class _Deltas(NamedTuple):
    """Weights as loops want them. Deltas are taken negated and subtracted, so that models are in the order base, minuend, subtrahend, …"""

    signed: Any
    magnitudes: Any
    units: Any
    """uint8, 1 where the weight is 1."""
    order: Any
    """The model at each place of that order."""
    posts: Any
    """The place of each post in that order."""
    simple: int
    """1 if there is one delta, with weight 1."""
    large: int
    """1 if weights are so large that sums might be."""
    spread: float
    """Over the least scale, how large the largest may be for sums in float32 to be exact; 0 where they are not in any case."""

    @classmethod
    def of(cls, encoding: Scaled, weights: Sequence[float]) -> _Deltas:
        signed = np.array(weights, np.float64)
        forward = [weight > 0 for weight in weights]
        order = [0]
        for delta, ahead in enumerate(forward):
            order += [2 + 2 * delta, 1 + 2 * delta] if ahead else [1 + 2 * delta, 2 + 2 * delta]
        simple = len(weights) == 1 and weights[0] == 1
        bits = 0 if encoding.powers_of_two or encoding.scale == "E8M0" else 11  # those of any scale whose numbers are float32
        spread = 2.0**24 / _STEPS[encoding.code] / 2**bits / 4 if simple and encoding.numbers == "F32" else 0.0
        return cls(
            signed,
            np.abs(signed),
            np.array([weight == 1 for weight in weights], np.uint8),
            np.array(order, np.int64),
            np.array([2 + 2 * delta if ahead else 1 + 2 * delta for delta, ahead in enumerate(forward)], np.int64),
            int(simple),
            int(not np.abs(signed).sum() < 1e6),
            spread,
        )


class _Room(NamedTuple):
    """What is known of the blocks of a strip."""

    scales: Any
    """Float64 of each block and model, in the order of `_Deltas`, times UNIT."""
    places: Any
    """Addresses of codes, in that order."""
    low: Any
    """The least number of every lane of a block, [block, LANES]."""
    high: Any
    found: Any
    """Bits of `vectors`, of each block."""
    marks: Any
    """Lanes of the blocks that differ from each post, [block, delta]."""
    what: Any
    """PASSED, KEPT or RESCALED, of each block."""
    chosen: Any
    """The model whose bytes the block gets, or the bits of its scale."""
    factor: Any
    """What its numbers are divided by."""

    @classmethod
    def of(cls, models: int, blocks: int, number: Any) -> _Room:
        return cls(
            np.empty((blocks, models), np.float64),
            np.empty(models, np.uint64),
            np.empty((blocks, LANES), number),
            np.empty((blocks, LANES), number),
            np.empty(blocks, np.int64),
            np.empty((blocks, max(1, models // 2)), np.uint16),
            np.empty(blocks, np.int64),
            np.empty(blocks, np.int64),
            np.empty(blocks, np.float64),
        )


@compiled(error_model="numpy", _nrt=False)
def _merge(grid: Grid, places, wholes, same, deltas, first, last, codes, scales, numbers, width, room, scratch, counts):
    """`merge_scaled`, of models whose codes and scales are at places[model]. numbers[rows · width] is overwritten. Returns the misfit's
    factor."""
    factor = SLACK
    top = scale_row(grid, first)
    row_of, scratch = scratch
    known = bytes_at(places[0, 1])
    at = first
    while at < last:
        rows = rows_of_block(grid, at, last)
        row_of_scales = (scale_row(grid, at) - top) * grid.across
        for left in range(0, grid.width, width):
            right = min(grid.width, left + width)
            if _quick_strip(
                grid, places, wholes, same, deltas, at - first, row_of_scales, rows, left, right, codes, scales, numbers, room, counts
            ):
                continue
            _sum_strip(grid, places, wholes, deltas.signed, at - first, row_of_scales, rows, left, right, numbers, scratch)
            for column in range(left, right, grid.columns):
                columns = min(grid.columns, right - column)
                begin, place = at - first + column, row_of_scales + column // grid.columns
                part = numbers[column - left : column - left + (rows - 1) * (right - left) + columns]
                equal = _equal_to(grid, part, right - left, places, wholes, same, begin, rows, columns, place, row_of)
                if equal >= 0:
                    copy_block(grid, places[equal], begin, rows, columns, place, codes, scales)
                    counts[PASSED] += 1
                    if not _all_finite(part, right - left, rows, columns):
                        _count_nonfinite(part, right - left, rows, columns, begin, grid.width, counts)
                    continue
                before = counts[3]
                exceeds = encode_block(grid, part, right - left, rows, columns, known, place, wholes[0], begin, codes, scales, counts)
                if exceeds > factor:
                    factor = exceeds
                    row, offset = divmod(largest(part, rows, columns, right - left), right - left)
                    counts[MISFIT] = first + begin + row * grid.width + offset
                if counts[3] > before:
                    _count_nonfinite(part, right - left, rows, columns, begin, grid.width, counts)
        at += rows * grid.width
    return factor


@numba.njit(error_model="numpy", _nrt=False)
def _quick_strip(grid, places, wholes, same, deltas, start, row_of_scales, rows, left, right, codes, scales, numbers, room, counts):
    """Sum and encode columns [left, right), many elements at a time. False, and nothing is done, where something is out of the ordinary:
    a NaN, a scale that is none or far from all others, a number that is not finite or does not fit, columns that are no multiple of what
    is done at a time."""
    if grid.fixed or grid.width % LANES or (grid.columns % LANES and grid.columns < grid.width) or deltas.large:
        return False
    share = 1 if grid.code == E4M3 else 2
    place, blocks = row_of_scales + left // grid.columns, (right - left + grid.columns - 1) // grid.columns
    least, most = np.inf, 0.0
    for model in range(len(places)):
        which = deltas.order[model]
        known = bytes_at(places[which, 1])
        room.places[model] = places[which, 0] + np.uint64((start + left) // share)
        for block in range(blocks):
            scale = scale_at(grid.scale, known, place + block, grid.mode, wholes[which])
            if not _LEAST < scale < _MOST:
                return False
            least, most = min(least, scale), max(most, scale)
            room.scales[block, model] = scale * UNIT[grid.code]
    narrow = most <= deltas.spread * least
    for block in range(blocks):
        room.found[block] = 0
        for delta in range(len(deltas.posts)):
            room.marks[block, delta] = 0
    low, high, out = address_of(room.low, 0), address_of(room.high, 0), address_of(numbers, 0)
    lanes_size, number_size, width = np.uint64(LANES * numbers.itemsize), np.uint64(numbers.itemsize), right - left
    base, one, other = room.places[0], room.places[min(1, len(places) - 1)], room.places[min(2, len(places) - 1)]
    for row in range(rows):
        offset = np.uint64(row * grid.width // share)
        if row + AHEAD < rows:
            _ask_for(room.places, np.uint64((row + AHEAD) * grid.width // share), width // share)
        for block in range(blocks):
            column = block * grid.columns
            count, at = min(grid.columns, width - column) // LANES, offset + np.uint64(column // share)
            to = out + number_size * np.uint64(row * width + column)
            lowest, highest = low + lanes_size * np.uint64(block), high + lanes_size * np.uint64(block)
            if not deltas.simple:
                room.found[block] |= _sum_any_row(grid.code, deltas, room, block, count, at, numbers, to, row == 0, lowest, highest)
                continue
            base_scale, old_scale, post_scale = room.scales[block, 0], room.scales[block, 1], room.scales[block, 2]
            room.found[block] |= _sum_row(
                grid.code,
                narrow,
                numbers,
                count,
                base + at,
                other + at,
                one + at,
                base_scale,
                post_scale,
                old_scale,
                to,
                row == 0,
                lowest,
                highest,
            )
    known = bytes_at(places[0, 1])
    if not _choose(grid, same, deltas, known, place, wholes[0], blocks, numbers, room):
        return False
    own = np.uint64(codes.ctypes.data) + np.uint64((start + left) // share)
    for row in range(rows):
        for block in range(blocks):
            if room.what[block] != PASSED:
                column = block * grid.columns
                at = own + np.uint64((row * grid.width + column) // share)
                count, found = min(grid.columns, width - column) // LANES, out + number_size * np.uint64(row * width + column)
                _put_row(grid.code, numbers, count, found, room.factor[block], 1.0 / room.factor[block], at)
    for block in range(blocks):
        counts[room.what[block]] += 1
        if room.what[block] == PASSED:
            columns = min(grid.columns, right - left - block * grid.columns)
            begin = start + left + block * grid.columns
            copy_block(grid, places[room.chosen[block]], begin, rows, columns, place + block, codes, scales)
        else:
            put_bits(grid.scale, scales, place + block, room.chosen[block])
    return True


@numba.njit(_nrt=False, forceinline=True)
def _ask_for(places, offset, count):
    for model in range(len(places)):
        for line in range(0, count, 64):
            prefetch(places[model] + offset + np.uint64(line))


@numba.njit(_nrt=False, forceinline=True)
def _sum_row(code, narrow, like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high):
    """Sums of a row of a block, see `vectors`, and bits of what was found."""
    if narrow:
        if code == E4M3:
            return narrow_sum_e4m3(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)
        if code == E2M1:
            return narrow_sum_e2m1(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)
        return narrow_sum_int4(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)
    if code == E4M3:
        return sum_e4m3(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)
    if code == E2M1:
        return sum_e2m1(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)
    return sum_int4(like, count, base, post, old, base_scale, post_scale, old_scale, out, fresh, low, high)


@numba.njit(_nrt=False)
def _sum_any_row(code, deltas, room, block, count, at, like, out, fresh, low, high):
    """The same for any deltas and weights."""
    scales, marks = address_of(room.scales, block * room.scales.shape[1]), address_of(room.marks, block * room.marks.shape[1])
    places, weights = address_of(room.places, 0), address_of(deltas.magnitudes, 0)
    units, posts = address_of(deltas.units, 0), address_of(deltas.posts, 0)
    number = len(deltas.posts)
    if code == E4M3:
        return any_sum_e4m3(like, count, number, places, at, scales, weights, units, posts, out, fresh, low, high, marks)
    if code == E2M1:
        return any_sum_e2m1(like, count, number, places, at, scales, weights, units, posts, out, fresh, low, high, marks)
    return any_sum_int4(like, count, number, places, at, scales, weights, units, posts, out, fresh, low, high, marks)


@numba.njit(_nrt=False, forceinline=True)
def address_of(array, element):
    """The address of an element."""
    return np.uint64(array.ctypes.data) + np.uint64(array.itemsize) * np.uint64(element)


@numba.njit(_nrt=False, forceinline=True)
def _put_row(code, like, count, numbers, scale, inverse, at):
    """Codes of a row of a block, from numbers at an address to another."""
    if code == E4M3:
        put_e4m3(like, count, numbers, scale, inverse, at)
    elif code == E2M1:
        put_e2m1(like, count, numbers, scale, inverse, at)
    else:
        put_int4(like, count, numbers, scale, inverse, at)


@numba.njit(error_model="numpy", _nrt=False)
def _choose(grid, same, deltas, known, place, whole, blocks, numbers, room):
    """Decide on the scale of each block. Whether all of them are ordinary."""
    for block in range(blocks):
        found = room.found[block]
        if found & NOT_A_NUMBER:
            return False
        equal = -1
        for delta in range(len(deltas.posts)):
            differs = found & DIFFERS_FROM_POST if deltas.simple else np.int64(room.marks[block, delta])
            if equal < 0 and same[1 + delta] and not differs:
                equal = 1 + 2 * delta
        if equal < 0 and same[0] and not found & DIFFERS_FROM_BASE:
            equal = 0
        if equal >= 0:
            room.what[block], room.chosen[block] = PASSED, equal
            continue
        low = least_of_lanes(numbers, address_of(room.low, block * LANES))
        high = largest_of_lanes(numbers, address_of(room.high, block * LANES))
        scale = room.scales[block, 0] / UNIT[grid.code]
        bits = bits_at(grid.scale, known, place + block)
        room.what[block], room.chosen[block], room.factor[block] = KEPT, bits, scale
        if fits(scale, low, high, BELOW[grid.code], ABOVE[grid.code]):
            continue
        bits, exceeds, what = choose_scale(grid, low, high, bits, whole)
        scale = joined(number_of(grid.scale, bits), grid.mode, whole)
        if not (exceeds <= 1 and _LEAST < scale < _MOST):
            return False
        room.what[block], room.chosen[block], room.factor[block] = what, bits, scale
    return True


@numba.njit(_nrt=False)
def _all_finite(part, stride, rows, columns):
    finite = True
    for row in range(rows):
        one = part[row * stride : row * stride + columns]
        for i in range(columns):
            finite &= abs(one[i]) < np.inf
    return finite


@numba.njit(_nrt=False)
def _count_nonfinite(part, stride, rows, columns, begin, width, counts):
    """Count numbers that are not finite, and find the first of the range."""
    for row in range(rows):
        for i in range(columns):
            if not abs(part[row * stride + i]) < np.inf:
                place = begin + row * width + i
                counts[_PLACE] = place if counts[_TOTAL] == 0 else min(counts[_PLACE], place)
                counts[_TOTAL] += 1


@numba.njit(error_model="numpy", _nrt=False)
def _equal_to(grid, numbers, stride, places, wholes, same, begin, rows, columns, place, row_of):
    """The first of posts and base, in this order, that has the numbers of a block; −1 if none has."""
    for step in range(1, len(same) + 1):
        k = step % len(same)
        model = max(0, 2 * k - 1)
        if same[k]:
            codes, scales = bytes_at(places[model, 0]), bytes_at(places[model, 1])
            scale = scale_at(grid.scale, scales, place, grid.mode, wholes[model])
            stored = row_of[:columns]
            equal = True
            for row in range(rows):
                decode_row(grid.code, codes, begin + row * grid.width, scale, stored)
                one = numbers[row * stride : row * stride + columns]
                for i in range(columns):
                    equal &= (one[i] == stored[i]) & (math.copysign(1.0, one[i]) == math.copysign(1.0, stored[i]))
                if not equal:
                    break
            if equal:
                return model
    return -1


@numba.njit(error_model="numpy", _nrt=False)
def _sum_strip(grid, places, wholes, weights, start, row_of_scales, rows, left, right, numbers, scratch):
    """numbers[row · (right − left) + column − left] = base + Σ weight · (post − old) for columns [left, right) of rows of which the first
    begins with the code at `start`. As in `add_deltas`, deltas are taken negated and subtracted."""
    for column in range(left, right, grid.columns):
        columns = min(grid.columns, right - column)
        place = row_of_scales + column // grid.columns
        acc, one, other = scratch[0, :columns], scratch[1, :columns], scratch[2, :columns]
        for row in range(rows):
            codes = start + row * grid.width + column
            target = numbers[row * (right - left) + column - left : row * (right - left) + column - left + columns]
            _decode_one(grid, places[0], wholes[0], place, codes, acc)
            for k in range(len(weights)):
                post, old = 1 + 2 * k, 2 + 2 * k
                minuend, subtrahend = (old, post) if weights[k] > 0 else (post, old)
                _decode_one(grid, places[minuend], wholes[minuend], place, codes, one)
                _decode_one(grid, places[subtrahend], wholes[subtrahend], place, codes, other)
                if weights[k] == 1:
                    for i in range(columns):
                        y, x = one[i], other[i]
                        same = (acc[i] == y) & (np.float64(acc[i]).view(np.int64) == np.float64(y).view(np.int64))
                        acc[i] = x if same else acc[i] - (y - x)
                else:
                    magnitude = abs(weights[k])
                    for i in range(columns):
                        acc[i] = acc[i] - (one[i] - other[i]) * magnitude
            for i in range(columns):
                target[i] = acc[i]


@numba.njit(error_model="numpy", _nrt=False)
def _decode_one(grid, place_of, whole, place, start, out):
    """out[n] of a model whose codes and scales are at place_of: of those at `start`, which have one scale."""
    scale = scale_at(grid.scale, bytes_at(place_of[1]), place, grid.mode, whole)
    decode_row(grid.code, bytes_at(place_of[0]), start, scale, out)
