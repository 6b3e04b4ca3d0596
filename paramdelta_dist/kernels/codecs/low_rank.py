"""Numbers of a tensor that is stored as a product of two factors, summed in an order of its own: the bytes depend on no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paramdelta_dist.kernels.encodings import LowRank, matrix
from paramdelta_dist.kernels.jit import compiled

CHUNK = 1024
"""Columns that are summed at a time: with a rank of 64, half a megabyte of a factor in float64, which stays in a core's second cache."""


def decode_low_rank(
    encoding: LowRank, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, out: memoryview
) -> None:
    """Write elements [first, last) to `out`, as float64; see `decode`."""
    target = np.frombuffer(out, np.float64)
    if len(target) != last - first:
        raise ValueError(f"{last - first} elements are to be decoded to {len(target)}")
    if encoding.rank == 0:
        target[:] = 0.0
        return
    height, columns = matrix(shape)
    size = height * columns
    one, other = first // size, (last - 1) // size + 1
    a, b = (_numbers(array, encoding.stored) for array in arrays)
    a = a.reshape(other - one, encoding.rank, -1)
    b = b.reshape(-1, encoding.rank, encoding.matrices)
    has_all = encoding.transposed or other > one + 1
    for number in range(one, other):
        begin, end = max(first, number * size) - number * size, min(last, (number + 1) * size) - number * size
        top, bottom = begin // columns, (end - 1) // columns + 1
        of_a, of_b = a[number - one], b[:, :, encoding.matrix + number]
        if encoding.transposed:  # element [i, j] is that of row j of B and column i of A
            left, right = _wide(of_a[:, top:bottom].T, encoding.stored), of_b.T
        else:
            left, right = _wide(of_b[top:bottom] if has_all else of_b, encoding.stored), of_a
        left = np.ascontiguousarray(left)
        place = target[number * size + begin - first : number * size + end - first]
        for start in range(0, columns, CHUNK):
            piece = np.ascontiguousarray(_wide(right[:, start : start + CHUNK], encoding.stored))
            _multiply(left, piece, encoding.scaling, start, columns, begin - top * columns, place)


def _numbers(array: memoryview, stored: str) -> Any:
    return np.frombuffer(array, {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[stored])


def _wide(array: Any, stored: str) -> Any:
    """A factor, or part of one, in float64."""
    if stored == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


@compiled()
def _multiply(left, right, scaling, start, columns, skipped, out):
    """out[n] = scaling · Σ_k left[i, k] · right[k, j − start] for those of its elements that lie in the columns from `start` on that
    `right` has. They are those of rows of so many columns from element `skipped` on. Adds for k = 0, 1, … and rounds every time."""
    acc = np.empty(right.shape[1], np.float64)
    for row in range(len(left)):
        begin = max(start, skipped - row * columns)
        end = min(start + right.shape[1], skipped + len(out) - row * columns)
        if begin >= end:
            continue
        target = out[row * columns + begin - skipped : row * columns + end - skipped]
        part = acc[: end - begin]
        part[:] = 0.0
        k = 0
        while k + 4 <= len(right):
            w, x, y, z = left[row, k], left[row, k + 1], left[row, k + 2], left[row, k + 3]
            one, two = right[k, begin - start : end - start], right[k + 1, begin - start : end - start]
            three, four = right[k + 2, begin - start : end - start], right[k + 3, begin - start : end - start]
            for j in range(len(part)):
                part[j] = (((part[j] + w * one[j]) + x * two[j]) + y * three[j]) + z * four[j]
            k += 4
        while k < len(right):
            w, one = left[row, k], right[k, begin - start : end - start]
            for j in range(len(part)):
                part[j] = part[j] + w * one[j]
            k += 1
        for j in range(len(part)):
            target[j] = scaling * part[j]
