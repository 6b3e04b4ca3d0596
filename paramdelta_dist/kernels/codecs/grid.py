"""The blocks of a tensor as compiled functions count them: bands of block rows, one after the other, over all of its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numba
import numpy as np

from paramdelta_dist.kernels.codecs.codes import KINDS as CODES
from paramdelta_dist.kernels.codecs.scales import KINDS as SCALES
from paramdelta_dist.kernels.codecs.scales import WHOLE
from paramdelta_dist.kernels.encodings import Scaled, matrix


class Grid(NamedTuple):
    """A scheme and a shape in numbers. All matrices are one where they share one scale."""

    code: int
    """As `codes.KINDS` has it."""
    scale: int
    """As `scales.KINDS` has it."""
    powers_of_two: int
    mode: int
    """As `scales.WHOLE` has it."""
    height: int
    """Rows of a matrix."""
    width: int
    """Columns of a matrix."""
    rows: int
    """Of a block, those at the end of a matrix apart."""
    columns: int
    down: int
    """Blocks below one another in a matrix."""
    across: int
    """Blocks beside one another."""
    fixed: int
    """1 where the scale must remain what it is."""


def grid_of(encoding: Scaled, shape: tuple[int, ...]) -> Grid:
    """Raises ValueError where rows of codes of four bits, or of blocks of them, would begin within a byte."""
    height, width = matrix(shape)
    rows, columns = encoding.rows, encoding.columns or width
    if not rows:
        height, columns = max(1, prod(shape) // width), width
        rows = height
    if encoding.bits == 4 and (width % 2 or columns % 2):
        raise ValueError(f"codes of four bits in {width} columns, in blocks of {columns}: both must be even")
    return Grid(
        CODES[encoding.code],
        SCALES[encoding.scale],
        int(encoding.powers_of_two),
        WHOLE[encoding.whole],
        height,
        width,
        rows,
        columns,
        -(-height // rows),
        -(-width // columns),
        int(not encoding.rows),
    )


@numba.njit(_nrt=False)
def scale_row(grid, element):
    """The row of scales, counted over all matrices, of the one with an element."""
    matrix, row = divmod(element // grid.width, grid.height)
    return matrix * grid.down + row // grid.rows


@numba.njit(_nrt=False)
def rows_of_block(grid, element, last):
    """How many rows of the matrix the block has from the one with an element on, before elements end at `last`."""
    row = element // grid.width % grid.height
    stop = min(grid.height, (row // grid.rows + 1) * grid.rows)
    return min(stop - row, -((element // grid.width * grid.width - last) // grid.width))


def address(data: memoryview) -> Any:
    """The place of bytes in memory. They must be kept as long as it is used."""
    return np.uint64(np.frombuffer(data, np.uint8).ctypes.data)


def whole_of(arrays: Sequence[memoryview]) -> float:
    """The number for all of the tensor, where there is one among its arrays; else 1."""
    return float(np.frombuffer(arrays[2], np.uint8)[:4].copy().view("<f4")[0]) if len(arrays) > 2 else 1.0
