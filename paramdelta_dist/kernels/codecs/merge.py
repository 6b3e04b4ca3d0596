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

from paramdelta_dist.kernels.codecs.codes import E4M3
from paramdelta_dist.kernels.codecs.encode import (
    MISFIT,
    PASSED,
    SLACK,
    Outcome,
    check_range,
    choose_scale,
    copy_block,
    encode_block,
    from_ordered,
    largest,
    outcome_of,
)
from paramdelta_dist.kernels.codecs.grid import Grid, address, grid_of, rows_of_block, scale_row, whole_of
from paramdelta_dist.kernels.codecs.lanes import (
    UNIT,
    add_to_sum,
    add_weighted,
    any_bits,
    bounds,
    has_nan,
    keep,
    note_differences,
    only_base,
    put_codes,
    start_sum,
)
from paramdelta_dist.kernels.codecs.lanes import numbers as decode_lanes
from paramdelta_dist.kernels.codecs.scaled import ALL, NUMBERS, decode_row
from paramdelta_dist.kernels.codecs.scales import bits_at, joined, number_of, put_bits, scale_at, scales_at
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.kernels.jit import compiled, pointer, prefetch

STRIP = 1 << 16
"""Numbers of a strip, where its blocks are not larger: half a megabyte, which stays in a core's second cache."""


PIECE = 1 << 9
"""Columns of a strip, likewise: what is known of them stays in the first cache while they are summed."""
AHEAD = 2
"""Rows of a strip that are asked for before they are needed: a processor does not guess what lies so far apart."""
_STEPS = {"e4m3": 448 * 2.0**9, "e2m1": 12.0, "int4": 8.0}
"""The largest number of each kind of code over the least step."""


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
    weighted = np.array(weights, np.float64)
    width = strip_columns(encoding, shape)
    numbers = np.empty(min(grid.rows, grid.height) * width, NUMBERS[encoding.numbers])
    room = _room_for(len(models), width, grid.columns, NUMBERS[encoding.numbers])
    counts = np.zeros(7, np.int64)
    bits = 0 if encoding.powers_of_two or encoding.scale in ("E8M0", "F32", "F64") else 11
    limit = 2.0**24 / _STEPS[encoding.code] / 2**bits / (1 + len(models)) if all(weight == 1 for weight in weights) else 0.0
    target, target_scales = np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8)
    factor = _merge(grid, places, wholes, same, weighted, limit, first, last, target, target_scales, numbers, width, room, counts)
    return Merged(outcome_of(counts[:5], factor), int(counts[_TOTAL]), int(counts[_PLACE]))


_TOTAL, _PLACE = 5, 6


class _Room(NamedTuple):
    """Arrays that pieces of rows are worked on in; see `lanes`."""

    scales: Any
    """Of every model and block, float64."""
    spread: Any
    """The same for every lane, times UNIT; and in `narrow` as float32, where float32 is wide enough."""
    narrow: Any
    bits: Any
    stored: Any
    total: Any
    narrow_total: Any
    differs: Any
    near: Any
    low: Any
    high: Any
    seen: Any
    """Bits of the models, base and posts, from which a block is known to differ."""
    chosen: Any
    """Bits of the scale of each block, and its number in `divisors`, `inverses` for every lane."""
    what: Any
    factor: Any
    divisors: Any
    inverses: Any


def _room_for(models: int, width: int, columns: int, number: Any) -> _Room:
    blocks = -(-width // columns)
    wide = number is np.float64
    spread, total = np.empty((models, width), np.float64), np.empty(width, np.float64)
    order = np.int64 if wide else np.int32
    return _Room(
        np.empty((models, blocks), np.float64),
        spread,
        spread if wide else np.empty((models, width), np.float32),
        np.empty(width, np.uint16),
        np.empty((models, width), np.float32),
        total,
        total if wide else np.empty(width, np.float32),
        np.empty(width, np.uint32),
        np.empty(width, np.float32),
        np.empty(blocks, order),
        np.empty(blocks, order),
        np.empty(blocks, np.uint32),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.float64),
        np.empty(width, np.float64),
        np.empty(width, np.float64),
    )


@compiled(error_model="numpy")
def _merge(grid: Grid, places, wholes, same, weights, limit, first, last, codes, scales, numbers, width, room, counts):
    """`merge_scaled`, of models whose codes and scales are at places[model]. numbers[rows · width] is overwritten. Returns the misfit's
    factor."""
    factor = SLACK
    top = scale_row(grid, first)
    row_of, scratch = np.empty(grid.columns, numbers.dtype), np.empty((3, grid.columns), np.float64)
    known = numba.carray(pointer(places[0, 1]), ALL, np.uint8)
    at = first
    while at < last:
        rows = rows_of_block(grid, at, last)
        row_of_scales = (scale_row(grid, at) - top) * grid.across
        for left in range(0, grid.width, width):
            right = min(grid.width, left + width)
            if _quick_strip(
                grid,
                places,
                wholes,
                same,
                weights,
                limit,
                at - first,
                row_of_scales,
                rows,
                left,
                right,
                codes,
                scales,
                numbers,
                room,
                counts,
            ):
                continue
            _sum_strip(grid, places, wholes, weights, at - first, row_of_scales, rows, left, right, numbers, scratch)
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


@numba.njit(error_model="numpy")
def _quick_strip(grid, places, wholes, same, weights, limit, start, row_of_scales, rows, left, right, codes, scales, numbers, room, counts):
    """Sum and encode columns [left, right), many elements at a time. False, and nothing is done, where something is out of the ordinary:
    a NaN, a scale that is none or far from all others, a number that is not finite or does not fit."""
    if grid.fixed or len(same) > 32:
        return False
    share = 1 if grid.code == E4M3 else 2
    lanes, group = (right - left) // share, min(grid.columns, right - left) // share
    place, blocks = row_of_scales + left // grid.columns, (lanes + group - 1) // group
    least, most = np.inf, 0.0
    for model in range(len(places)):
        known = numba.carray(pointer(places[model, 1]), ALL, np.uint8)
        scales_at(grid.scale, known, place, blocks, grid.mode, wholes[model], room.scales, model)
        for block in range(blocks):
            scale = room.scales[model, block]
            if not _LEAST < scale < _MOST:
                return False
            least, most = min(least, scale), max(most, scale)
    for block in range(blocks):
        room.seen[block] = 0
    for k in range(len(same)):
        if not same[k]:
            for block in range(blocks):
                room.seen[block] |= np.uint32(1 << k)
    _spread(room.scales, UNIT[grid.code], lanes, group, room.spread)
    begin = (start + left) // share
    if most <= limit * least:
        _spread(room.scales, UNIT[grid.code], lanes, group, room.narrow)
        plain = _sum_rows(grid, places, weights, begin, rows, lanes, group, len(same), room, room.narrow, room.narrow_total, numbers)
    else:
        plain = _sum_rows(grid, places, weights, begin, rows, lanes, group, len(same), room, room.spread, room.total, numbers)
    if not plain or not _choose(grid, numba.carray(pointer(places[0, 1]), ALL, np.uint8), place, wholes[0], blocks, len(same), room):
        return False
    for block in range(blocks):
        counts[room.what[block]] += 1
        put_bits(grid.scale, scales, place + block, room.chosen[block])
        for lane in range(block * group, min(lanes, (block + 1) * group)):
            room.divisors[lane], room.inverses[lane] = room.factor[block], 1.0 / room.factor[block]
    for row in range(rows):
        at, to = np.uint64(row * lanes * share), np.uint64(begin + row * grid.width // share)
        if row + AHEAD < rows:
            for line in range(0, lanes, 64):
                prefetch(np.uint64(codes.ctypes.data) + to + np.uint64(AHEAD * grid.width // share + line))
        put_codes(grid.code, np.uint64(lanes), numbers, at, room.divisors, room.inverses, room.near, codes, to)
    for block in range(blocks):
        if room.what[block] == PASSED:
            columns = min(grid.columns, right - left - block * grid.columns)
            model = places[room.chosen[block]]
            copy_block(grid, model, start + left + block * grid.columns, rows, columns, place + block, codes, scales)
    return True


_LEAST, _MOST = 2.0**-100, 2.0**100


@numba.njit
def _spread(scales, unit, lanes, group, out):
    """out[model, lane] = the scale of each lane's block · unit."""
    for model in range(len(scales)):
        for block in range((lanes + group - 1) // group):
            scale = out.dtype.type(scales[model, block] * unit)
            for lane in range(np.uint64(block * group), np.uint64(min(lanes, (block + 1) * group))):
                out[model, lane] = scale


@numba.njit
def _sum_rows(grid, places, weights, begin, rows, lanes, group, candidates, room, spread, total, numbers):
    """numbers[row, half, lane] of rows of which the first begins with byte `begin` of the codes, and what is known of each block. Whether
    there is no NaN among the codes."""
    halves = np.uint64(1 if grid.code == E4M3 else 2)
    wide, alive = np.uint64(lanes), True
    for row in range(rows):
        at = np.uint64(begin + row * grid.width // np.int64(halves))
        for model in range(len(places)):
            codes = numba.carray(pointer(places[model, 0]), ALL, np.uint8)
            if row + AHEAD < rows:
                ahead = places[model, 0] + at + np.uint64(AHEAD * grid.width // np.int64(halves))
                for line in range(np.uint64(0), wide, np.uint64(64)):
                    prefetch(ahead + line)
            if grid.code == E4M3 and has_nan(codes, at, wide):
                return False
            decode_lanes(grid.code, codes, at, wide, room.bits, room.stored, model)
        for k in range(len(weights)):
            post, old = 1 + 2 * k, 2 + 2 * k
            minuend, subtrahend = (old, post) if weights[k] > 0 else (post, old)
            if k == 0 and weights[k] == 1:
                start_sum(halves, wide, room.stored, spread, total, minuend, subtrahend)
                continue
            if k == 0:
                only_base(halves, wide, room.stored, spread, total)
            if weights[k] == 1:
                add_to_sum(halves, wide, room.stored, spread, total, minuend, subtrahend)
            else:
                add_weighted(halves, wide, room.stored, spread, total, minuend, subtrahend, total.dtype.type(abs(weights[k])))
        if len(weights) == 0:
            only_base(halves, wide, room.stored, spread, total)
        first = np.uint64(row) * halves * wide
        keep(halves * wide, total, numbers, first)
        if alive:
            alive = _look_for_the_same(halves, lanes, group, candidates, room, spread, numbers, first)
        for half in range(halves):
            for block in range((lanes + group - 1) // group):
                count = np.uint64(min(group, lanes - block * group))
                low, high = bounds(numbers, first + half * wide + np.uint64(block * group), count)
                if row == 0 and half == 0:
                    room.low[block], room.high[block] = low, high
                else:
                    room.low[block], room.high[block] = min(room.low[block], low), max(room.high[block], high)
    return True


@numba.njit
def _look_for_the_same(halves, lanes, group, candidates, room, spread, numbers, first):
    """Note from which of base and posts each block differs in a row. Whether there is a block that differs not from all of them."""
    wide, alive = np.uint64(lanes), False
    for i in range(halves * wide):
        room.differs[i] = 0
    for k in range(candidates):
        note_differences(halves, wide, room.stored, spread, max(0, 2 * k - 1), numbers, first, 1 << k, room.differs)
    every = np.uint32((1 << candidates) - 1)
    for block in range((lanes + group - 1) // group):
        for half in range(halves):
            count = np.uint64(min(group, lanes - block * group))
            room.seen[block] |= any_bits(room.differs, half * wide + np.uint64(block * group), count)
        alive |= room.seen[block] != every
    return alive


@numba.njit(error_model="numpy")
def _choose(grid, known, place, whole, blocks, candidates, room):
    """Decide on the scale of each block. Whether all of them fit."""
    every = np.uint32((1 << candidates) - 1)
    for block in range(blocks):
        room.factor[block] = room.scales[0, block]
        if room.seen[block] != every:
            k = 0
            while (room.seen[block] >> np.uint32(k)) & np.uint32(1):
                k += 1
            room.what[block], room.chosen[block] = PASSED, max(0, 2 * k - 1)
            continue
        low, high = np.float64(from_ordered(room.low[block])), np.float64(from_ordered(room.high[block]))
        if not (-np.inf < low and high < np.inf):
            return False
        bits, exceeds, what = choose_scale(grid, low, high, bits_at(grid.scale, known, place + block), whole)
        factor = joined(number_of(grid.scale, bits), grid.mode, whole)
        if exceeds > 1 or not _LEAST < factor < _MOST:
            return False
        room.what[block], room.chosen[block], room.factor[block] = what, bits, factor
    return True


@numba.njit
def _all_finite(part, stride, rows, columns):
    finite = True
    for row in range(rows):
        one = part[row * stride : row * stride + columns]
        for i in range(columns):
            finite &= abs(one[i]) < np.inf
    return finite


@numba.njit
def _count_nonfinite(part, stride, rows, columns, begin, width, counts):
    """Count numbers that are not finite, and find the first of the range."""
    for row in range(rows):
        for i in range(columns):
            if not abs(part[row * stride + i]) < np.inf:
                place = begin + row * width + i
                counts[_PLACE] = place if counts[_TOTAL] == 0 else min(counts[_PLACE], place)
                counts[_TOTAL] += 1


@numba.njit(error_model="numpy")
def _equal_to(grid, numbers, stride, places, wholes, same, begin, rows, columns, place, row_of):
    """The first of posts and base, in this order, that has the numbers of a block; −1 if none has."""
    for step in range(1, len(same) + 1):
        k = step % len(same)
        model = max(0, 2 * k - 1)
        if same[k]:
            codes, scales = numba.carray(pointer(places[model, 0]), ALL, np.uint8), numba.carray(pointer(places[model, 1]), ALL, np.uint8)
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


@numba.njit(error_model="numpy")
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


@numba.njit(error_model="numpy")
def _decode_one(grid, place_of, whole, place, start, out):
    """out[n] of a model whose codes and scales are at place_of: of those at `start`, which have one scale."""
    scale = scale_at(grid.scale, numba.carray(pointer(place_of[1]), ALL, np.uint8), place, grid.mode, whole)
    decode_row(grid.code, numba.carray(pointer(place_of[0]), ALL, np.uint8), start, scale, out)
