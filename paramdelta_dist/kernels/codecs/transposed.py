"""Numbers of a tensor whose matrices are stored with rows and columns exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramdelta_dist.kernels.codecs.scaled import decode_scaled
from paramdelta_dist.kernels.encodings import SCALE_BYTES, Scaled, Transposed, matrix
from paramdelta_dist.kernels.jit import compiled

EDGE = 32
"""Rows and columns that are exchanged at a time, so that lines of a cache are used whole."""


def decode_transposed(
    encoding: Transposed, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, out: memoryview
) -> None:
    """Write elements [first, last) to `out`, as they are stored or decoded; see `decode`. What is scaled takes as much memory as the
    numbers of all matrices that have one of the elements."""
    items = f"<u{SCALE_BYTES[encoding.stored]}"
    target = np.frombuffer(out, items)
    if len(target) != last - first:
        raise ValueError(f"{last - first} elements are to be decoded to {len(target)}")
    held = arrays[0] if encoding.scaled is None else _decoded(encoding, encoding.scaled, arrays, shape, first, last)
    bytes_ = np.frombuffer(held, np.uint8)
    stored = (bytes_ if bytes_.ctypes.data % target.itemsize == 0 else bytes_.copy()).view(items)
    stored.flags.writeable = False  # always: to the compiler, read-only arrays are of another type
    height, width = matrix(shape)
    _gather(stored, encoding.height or height, encoding.top, height, width, first % (height * width), target)


def _decoded(
    encoding: Transposed, scaled: Scaled, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int
) -> memoryview:
    """The numbers of the matrices that have elements [first, last), as they lie."""
    (begin, end), stored = encoding.matrices(shape, first, last), encoding.as_stored(shape)
    size = encoding.together(stored)
    numbers = np.empty((end - begin) * size * SCALE_BYTES[encoding.stored], np.uint8).data
    decode_scaled(scaled, arrays, stored, begin * size, end * size, numbers)
    return numbers


@compiled()
def _gather(stored, tall, above, height, width, skipped, out):
    """out[n] = elements from `skipped` on of matrices [height, width], the rows from `above` on of [tall, width], of which stored[…] has
    the columns one after the other."""
    size = height * width
    for number in range((skipped + len(out) - 1) // size + 1):
        source = stored[number * tall * width : (number + 1) * tall * width]
        offset = number * size - skipped
        top, bottom = max(0, -offset) // width, (min(size, len(out) - offset) - 1) // width + 1
        for row in range(top, bottom, EDGE):
            for column in range(0, width, EDGE):
                for i in range(row, min(row + EDGE, bottom)):
                    begin, end = max(column, -offset - i * width), min(min(column + EDGE, width), len(out) - offset - i * width)
                    for j in range(begin, end):
                        out[offset + i * width + j] = source[j * tall + above + i]
