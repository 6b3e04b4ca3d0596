"""base + Σ weight · (post − its base) where all are stored by one scheme: from codes to codes in one pass, by way of a core's own caches.

The bytes are those of decoding, `sum_cpu.add_deltas` and encoding, one after the other. A strip of blocks is summed at a time, and then
encoded block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from paramdelta_dist.kernels.codecs.encode import MISFIT, PASSED, SLACK, Outcome, check_range, copy_block, encode_block, largest, outcome_of
from paramdelta_dist.kernels.codecs.grid import Grid, address, grid_of, rows_of_block, scale_row, whole_of
from paramdelta_dist.kernels.codecs.scaled import ALL, NUMBERS, decode_row
from paramdelta_dist.kernels.codecs.scales import scale_at
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.kernels.jit import compiled, pointer

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
    blocks = max(1, STRIP // (min(grid.rows, grid.height) * grid.columns))
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
    counts = np.zeros(7, np.int64)
    target, target_scales = np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8)
    factor = _merge(grid, places, wholes, same, weighted, first, last, target, target_scales, numbers, width, counts)
    return Merged(outcome_of(counts[:5], factor), int(counts[_TOTAL]), int(counts[_PLACE]))


_TOTAL, _PLACE = 5, 6


@compiled(error_model="numpy")
def _merge(grid: Grid, places, wholes, same, weights, first, last, codes, scales, numbers, width, counts):
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
    """The first of base and posts that has the numbers of a block; −1 if none has."""
    for k in range(len(same)):
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
                    equal &= one[i] == stored[i]
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
