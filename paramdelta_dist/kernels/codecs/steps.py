"""The distance from a number to its neighbours in an encoding: what rounding to it can tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import Scaled

_ONE = {"e4m3": 0x38, "e2m1": 0x22, "int4": 0x99}
"""A byte of codes that stand for 1."""


def steps_at(
    encoding: Scaled, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The distance [last − first] between the two neighbours of each of `numbers` with the scales in `arrays`, which are those of elements
    [first, last)."""
    ones = memoryview(bytes([_ONE[encoding.code]]) * len(arrays[0]))
    scales = np.empty((last - first) * (8 if encoding.numbers == "F64" else 4), np.uint8)
    decode(encoding, [ones, *arrays[1:]], shape, first, last, memoryview(scales.data))
    scale: NDArray[np.float64] = np.abs(scales.view(np.float64 if encoding.numbers == "F64" else np.float32).astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.nan_to_num(np.abs(numbers) / scale)
    unit = np.ones_like(size)
    if encoding.code == "e2m1":
        unit = np.where(size < 2, 0.5, np.where(size < 4, 1.0, 2.0))
    elif encoding.code == "e4m3":
        exponent = np.frexp(np.maximum(size, 2.0**-6))[1] - 1
        unit = np.exp2(np.minimum(exponent, 8) - 3)
    found: NDArray[np.float64] = scale * unit
    return found
