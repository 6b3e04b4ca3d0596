"""How the numbers of a tensor are stored where that is not one array of them: an encoding says which arrays there are, which bytes of
them elements [first, last) need, and how few elements must stay together. Places and sizes alone; `kernels/codecs/` decodes.

A tensor has a name, a shape and numbers. Its elements are counted in row-major order of that shape, whatever its arrays look like.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Protocol


class Space(Enum):
    """The meaning of a tensor's numbers for a merge."""

    WEIGHT = "weight"
    """A model's own: a delta is the difference of two."""
    DELTA = "delta"
    """What is added to a base: nothing may be subtracted from it again."""


Range = tuple[int, int]
"""Bytes [start, stop) of an array, counted from its first."""


class Encoding(Hashable, Protocol):
    """One way of storing the numbers of a tensor."""

    @property
    def space(self) -> Space: ...

    @property
    def numbers(self) -> str:
        """F32 or F64: a dtype in which every number that is stored so is exact, and so what it is decoded to; or the dtype of
        the stored numbers where these are only arranged in another way."""
        ...

    @property
    def arrays(self) -> int:
        """How many arrays are read to decode. The first holds the codes."""
        ...

    def together(self, shape: tuple[int, ...]) -> int:
        """Elements that are best decoded together, as less of them need as many bytes; 1 where any will do."""
        ...

    def ranges(self, shape: tuple[int, ...], first: int, last: int) -> tuple[Range, ...]:
        """The bytes of each array that decoding elements [first, last) needs."""
        ...

    def room(self, shape: tuple[int, ...], elements: int) -> int:
        """The most bytes of all arrays that any `elements` which follow one another need."""
        ...


CODE_BITS = {"e4m3": 8, "e2m1": 4, "int4": 4}
"""Bits of a code. `e4m3` is float8_e4m3fn; `e2m1` four bits of a float (0 to 6), and `int4` an integer stored with 8 added, two of
either to a byte, the one with the even column in the low half."""
LARGEST = {"e4m3": 448.0, "e2m1": 6.0, "int4": 7.5}
"""The largest number that is rounded to a code and not beyond all of them."""
SCALE_BYTES = {"F32": 4, "F64": 8, "BF16": 2, "F16": 2, "F8_E4M3": 1, "E8M0": 1}
"""Bytes of a scale. E8M0 is a byte b that stands for 2^(b − 127), whatever dtype a header gives it."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes, and a scale for each block of a matrix: number = code · scale. The matrices are the last two dimensions of a tensor, [rows,
    columns], and each has blocks of its own; those at its ends may be smaller. Arrays: codes, scales, and where `whole` says so one
    F32 number for all of the tensor.
    """

    code: str
    """A key of CODE_BITS."""
    rows: int
    """Of a block; 0 for all rows of all matrices."""
    columns: int
    """Of a block; 0 for whole rows."""
    scale: str
    """A key of SCALE_BYTES. Scales lie in row-major order, without padding."""
    powers_of_two: bool = False
    """Scales are powers of two, as some loaders demand, although their dtype could hold others."""
    whole: str = ""
    """`multiplies` or `divides`: what the number for all of the tensor does to every scale; empty where there is none."""

    @property
    def space(self) -> Space:
        return Space.WEIGHT

    @property
    def numbers(self) -> str:
        wide = self.whole or (self.scale in ("F32", "F64") and not self.powers_of_two)
        return "F64" if wide else "F32"

    @property
    def arrays(self) -> int:
        return 3 if self.whole else 2

    @property
    def bits(self) -> int:
        """Of a code."""
        return CODE_BITS[self.code]

    @property
    def title(self) -> str:
        """The scheme in words."""
        scope = f"{self.rows} × {self.columns or 'columns'}" if self.rows else "tensor"
        return f"{self.code}, {self.scale} for each {scope}" + (", and one for the tensor" if self.whole else "")

    def together(self, shape: tuple[int, ...]) -> int:
        return 2 if self.bits == 4 else 1

    def grain(self, shape: tuple[int, ...]) -> int:
        """Elements that are encoded together: what is written is cut at multiples of it. 1 where one scale is for all, which has to be
        known before."""
        if not self.rows:
            return 1
        height, columns = matrix(shape)
        if height % self.rows and prod(shape) > height * columns:  # blocks start anew in each matrix, so at no multiple of their rows
            return height * columns
        return min(self.rows, height) * columns

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Blocks down and across one matrix."""
        height, columns = matrix(shape)
        return -(-height // (self.rows or height)), -(-columns // (self.columns or columns))

    def scale_rows(self, shape: tuple[int, ...], first: int, last: int) -> Range:
        """The rows of scales [first, last), counted over all matrices, of elements [first, last), which are not none."""
        if not self.rows:
            return 0, 1
        height, columns = matrix(shape)
        down, _ = self.blocks(shape)
        (one, top), (other, bottom) = divmod(first // columns, height), divmod((last - 1) // columns, height)
        return one * down + top // self.rows, other * down + bottom // self.rows + 1

    def aligned(self, shape: tuple[int, ...], first: int, other: tuple[int, ...], begin: int) -> bool:
        """Whether the blocks are the same from element `first` of a tensor of `shape` on as from `begin` of one of shape `other` on."""
        (height, columns), (others_height, others_columns) = matrix(shape), matrix(other)
        if columns != others_columns or not self.rows:
            return (shape, first) == (other, begin)
        if (height, first) == (others_height, begin):
            return True
        grain = self.rows * columns
        return not (height % self.rows or others_height % self.rows or first % grain or begin % grain)

    def ranges(self, shape: tuple[int, ...], first: int, last: int) -> tuple[Range, ...]:
        across = self.blocks(shape)[1] if self.rows else 1
        begin, end = self.scale_rows(shape, first, last)
        width = across * SCALE_BYTES[self.scale]
        found = (first * self.bits // 8, -(-last * self.bits // 8)), (begin * width, end * width)
        return (*found, (0, 4)) if self.whole else found

    def room(self, shape: tuple[int, ...], elements: int) -> int:
        codes = -(-elements * self.bits // 8)
        if not self.rows:
            return codes + SCALE_BYTES[self.scale] + 4
        height, columns = matrix(shape)
        rows = -(-elements // columns) + 1
        bands = rows // min(self.rows, height) + 2
        return codes + bands * self.blocks(shape)[1] * SCALE_BYTES[self.scale] + 4


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of each matrix of a tensor: of its last two dimensions, at least one each."""
    columns = max(1, shape[-1]) if shape else 1
    return (max(1, shape[-2]) if len(shape) > 1 else 1), columns


@dataclass(frozen=True, slots=True)
class LowRank:
    """A product of two factors, as a LoRA adapter holds it: number[i, j] = scaling · Σ_k B[i, k] · A[k, j]. Arrays: A[rank, columns] and
    B[rows, rank], of one dtype; the tensor is [rows, columns], or with `transposed` [columns, rows].

    Factors of several matrices, as of the experts of a layer, lie together: those of A one after the other, those of B with their
    columns in turns. A tensor of n of them, [n, rows, columns], has number[m, i, j] = scaling · Σ_k B[i, k · matrices + matrix + m] ·
    A[m · rank + k, j] with A[n · rank, columns] and B[rows, rank · matrices]; a tensor of one may go without its first dimension.
    """

    rank: int
    """Of one matrix; 0 for zeros."""
    scaling: float
    stored: str
    """Dtype of the factors: BF16, F16, F32 or F64."""
    transposed: bool = False
    """The product lies transposed in the tensor, as for embeddings and Conv1D."""
    matrices: int = 1
    """How many matrices B has the factors of."""
    matrix: int = 0
    """The first of these that the tensor has."""

    @property
    def space(self) -> Space:
        return Space.DELTA

    @property
    def numbers(self) -> str:
        return "F64"

    @property
    def arrays(self) -> int:
        return 2

    def together(self, shape: tuple[int, ...]) -> int:
        return 1

    def ranges(self, shape: tuple[int, ...], first: int, last: int) -> tuple[Range, ...]:
        height, across = matrix(shape)
        one, other = first // (height * across), (last - 1) // (height * across) + 1
        rows, columns = (across, height) if self.transposed else (height, across)
        row, every = self.rank * SCALE_BYTES[self.stored], self.rank * self.matrices * SCALE_BYTES[self.stored]
        of_a = (one * columns * row, other * columns * row)
        if self.transposed or other > one + 1:  # a row of a transposed one is a column of A and needs all of B
            return of_a, (0, rows * every)
        begin = one * height * across
        return of_a, ((first - begin) // across * every, ((last - 1 - begin) // across + 1) * every)

    def room(self, shape: tuple[int, ...], elements: int) -> int:
        height, across = matrix(shape)
        rows, columns = (across, height) if self.transposed else (height, across)
        row, every = self.rank * SCALE_BYTES[self.stored], self.rank * self.matrices * SCALE_BYTES[self.stored]
        stacked = prod(shape[:-2])
        whole = self.transposed or (stacked > 1 and elements > 1)
        read = rows if whole else min(rows, elements // across + 2)
        return min(stacked, elements // (height * across) + 2) * columns * row + read * every


@dataclass(frozen=True, slots=True)
class Transposed:
    """Numbers whose matrices, the last two dimensions, are stored with rows and columns exchanged: plain ones in one array of whole
    matrices, or `scaled` ones."""

    stored: str
    """Dtype of plain numbers: BF16, F16, F32 or F64; of scaled ones, what they are decoded to."""
    height: int = 0
    """Rows of a matrix that is stored so, where the tensor has only some of them; 0 where it has all."""
    top: int = 0
    """The first of the rows that it has."""
    scaled: Scaled | None = None
    """The encoding of what is stored; None for plain numbers."""

    @property
    def space(self) -> Space:
        return Space.WEIGHT

    @property
    def numbers(self) -> str:
        return self.stored

    @property
    def arrays(self) -> int:
        return 1 if self.scaled is None else self.scaled.arrays

    def together(self, shape: tuple[int, ...]) -> int:
        height, columns = matrix(shape)
        return height * columns

    def as_stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is stored."""
        height, columns = matrix(shape)
        return (*shape[:-2], columns, self.height or height)

    def matrices(self, shape: tuple[int, ...], first: int, last: int) -> Range:
        """Those that have elements [first, last), which are not none."""
        size = self.together(shape)
        return first // size, (last - 1) // size + 1

    def ranges(self, shape: tuple[int, ...], first: int, last: int) -> tuple[Range, ...]:
        """Every matrix that has one of the elements, whole."""
        (begin, end), stored = self.matrices(shape, first, last), self.as_stored(shape)
        size = self.together(stored)
        if self.scaled is not None:
            return self.scaled.ranges(stored, begin * size, end * size)
        width = SCALE_BYTES[self.stored]
        return ((begin * size * width, end * size * width),)

    def room(self, shape: tuple[int, ...], elements: int) -> int:
        whole, rest = divmod(elements, self.together(shape))
        stored = self.as_stored(shape)
        size = (whole + 2 if rest else whole) * self.together(stored)
        return size * SCALE_BYTES[self.stored] if self.scaled is None else self.scaled.room(stored, size)
