"""Numbers of a tensor whose matrices are stored with rows and columns exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramdelta_dist.kernels.encodings import SCALE_BYTES, Transposed, matrix
from paramdelta_dist.kernels.jit import compiled

EDGE = 32
"""Rows and columns that are exchanged at a time, so that lines of a cache are used whole."""


def decode_transposed(
    encoding: Transposed, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, out: memoryview
) -> None:
    """Write elements [first, last) to `out`, as they are stored; see `decode`."""
    items = f"<u{SCALE_BYTES[encoding.stored]}"
    target, stored = np.frombuffer(out, items), np.frombuffer(arrays[0], np.uint8)
    if len(target) != last - first:
        raise ValueError(f"{last - first} elements are to be decoded to {len(target)}")
    height, width = matrix(shape)
    stored = (stored if stored.ctypes.data % target.itemsize == 0 else stored.copy()).view(items)
    stored.flags.writeable = False  # always: to the compiler, read-only arrays are of another type
    _gather(stored, height, width, first % (height * width), target)


@compiled()
def _gather(stored, height, width, skipped, out):
    """out[n] = elements from `skipped` on of matrices [height, width], of which stored[…] has the columns one after the other."""
    size = height * width
    for number in range((skipped + len(out) - 1) // size + 1):
        source = stored[number * size : (number + 1) * size]
        offset = number * size - skipped
        top, bottom = max(0, -offset) // width, (min(size, len(out) - offset) - 1) // width + 1
        for row in range(top, bottom, EDGE):
            for column in range(0, width, EDGE):
                for i in range(row, min(row + EDGE, bottom)):
                    begin, end = max(column, -offset - i * width), min(min(column + EDGE, width), len(out) - offset - i * width)
                    for j in range(begin, end):
                        out[offset + i * width + j] = source[j * height + i]
