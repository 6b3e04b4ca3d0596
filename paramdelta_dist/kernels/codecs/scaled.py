"""Numbers of a tensor that is stored as codes with a scale for each block."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from paramdelta_dist.kernels.codecs.codes import E2M1, E4M3, number_of_e2m1, number_of_e4m3, number_of_int4
from paramdelta_dist.kernels.codecs.grid import Grid, address, grid_of, scale_row, whole_of
from paramdelta_dist.kernels.codecs.scales import scale_at
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.kernels.jit import bytes_at, compiled

NUMBERS = {"F32": np.float32, "F64": np.float64}


def decode_scaled(encoding: Scaled, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, out: memoryview) -> None:
    """Write elements [first, last) to `out`, as numbers of `encoding.numbers`; see `decode`."""
    grid = grid_of(encoding, shape)
    target = np.frombuffer(out, NUMBERS[encoding.numbers])
    if len(target) != last - first:
        raise ValueError(f"{last - first} elements are to be decoded to {len(target)}")
    if encoding.bits == 4 and first % 2:
        raise ValueError(f"element {first} of codes of four bits begins within a byte")
    _decode(grid, address(arrays[0]), address(arrays[1]), whole_of(arrays), first, last, target)


@compiled(error_model="numpy", _nrt=False)
def _decode(grid: Grid, codes, scales, whole, first, last, out):
    """out[last − first] of the codes and scales at these addresses, whose first are those that decoding needs."""
    codes, scales = bytes_at(codes), bytes_at(scales)
    top = scale_row(grid, first)
    at = first
    while at < last:
        column = at % grid.width
        block = column // grid.columns
        stop = min(last, at - column + min((block + 1) * grid.columns, grid.width))
        scale = scale_at(grid.scale, scales, (scale_row(grid, at) - top) * grid.across + block, grid.mode, whole)
        decode_row(grid.code, codes, at - first, scale, out[at - first : stop - first])
        at = stop


@numba.njit(_nrt=False)
def decode_row(code, codes, start, scale, out):
    """out[n] of as many codes that follow one another, from the one at `start` on; with four bits, an even one."""
    factor = out.dtype.type(scale)
    if code == E4M3:
        bytes_ = codes[start : start + len(out)]
        for i in range(len(out)):
            out[i] = out.dtype.type(number_of_e4m3(bytes_[i])) * factor
        return
    pairs = codes[start // 2 : start // 2 + (len(out) + 1) // 2]
    half = len(out) // 2
    if code == E2M1:
        for i in range(half):
            out[2 * i] = out.dtype.type(number_of_e2m1(pairs[i] & np.uint8(15))) * factor
            out[2 * i + 1] = out.dtype.type(number_of_e2m1(pairs[i] >> np.uint8(4))) * factor
        if len(out) % 2:
            out[-1] = out.dtype.type(number_of_e2m1(pairs[half] & np.uint8(15))) * factor
    else:
        for i in range(half):
            out[2 * i] = out.dtype.type(number_of_int4(pairs[i] & np.uint8(15))) * factor
            out[2 * i + 1] = out.dtype.type(number_of_int4(pairs[i] >> np.uint8(4))) * factor
        if len(out) % 2:
            out[-1] = out.dtype.type(number_of_int4(pairs[half] & np.uint8(15))) * factor
