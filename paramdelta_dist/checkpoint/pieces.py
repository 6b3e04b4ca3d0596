"""Tensors made of others without arithmetic: some rows of one, several one behind the other, one with rows and columns exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from paramdelta_dist.checkpoint.dtypes import DTYPES, ITEMSIZES
from paramdelta_dist.checkpoint.header import Encoded, Stacked, StoredArray, Tensor
from paramdelta_dist.kernels.encodings import Scaled, Transposed, matrix

TURNABLE = frozenset({"BF16", "F16", "F32", "F64"})
"""Dtypes of plain numbers whose rows and columns may be exchanged."""


class Uncut(Exception):
    """A tensor cannot be made so; the text says why, as the end of a sentence that names it."""


def cut(held: StoredArray, first: int, shape: tuple[int, ...]) -> StoredArray:
    """The elements of a tensor from `first` on, as a tensor of `shape` whose rows are rows of it, all in one of its matrices.

    Raises Uncut where they do not begin with a block of what is encoded.
    """
    name, tensor = held
    last, encoded = first + prod(shape), tensor.encoded
    if encoded is None:
        width = ITEMSIZES.get(tensor.dtype)
        if width is None:
            raise Uncut(f"{tensor.dtype} has no whole bytes")
        return StoredArray(name, tensor._replace(shape=shape, start=tensor.start + first * width, stop=tensor.start + last * width))
    if not isinstance(encoded, Encoded) or not isinstance(encoded.encoding, Scaled):
        raise Uncut("it is encoded in a way of which no rows can be taken")
    height, columns = matrix(tensor.shape)
    rows = encoded.encoding.rows
    if rows and first // columns % height % rows:
        raise Uncut(f"row {first // columns % height} is inside a block of {rows}")
    ranges = encoded.encoding.ranges(tensor.shape, first, last)
    arrays = tuple([_bytes_of(array, *each) for array, each in zip(encoded.arrays, ranges, strict=False)])
    codes = arrays[0].tensor
    return StoredArray(name, Tensor(tensor.dtype, shape, codes.file, codes.start, codes.stop, Encoded(encoded.encoding, arrays)))


def cut_each(held: StoredArray, firsts: Sequence[int], shape: tuple[int, ...]) -> list[Tensor]:
    """Several of one shape, that begin with each of these elements. Raises as `cut` does."""
    dtype, _, file, start, _, encoded = held.tensor
    width = ITEMSIZES.get(dtype)
    if encoded is not None or width is None:
        return [cut(held, first, shape).tensor for first in firsts]
    size = prod(shape) * width
    return [Tensor(dtype, shape, file, begin, begin + size) for begin in [start + first * width for first in firsts]]


def _bytes_of(array: StoredArray, start: int, stop: int) -> StoredArray:
    name, tensor = array
    count = (stop - start) // max(1, ITEMSIZES.get(tensor.dtype, 1))
    return StoredArray(name, tensor._replace(shape=(count,), start=tensor.start + start, stop=tensor.start + stop))


def stacked(pieces: Sequence[StoredArray], shape: tuple[int, ...]) -> Tensor:
    """The tensor of `shape` whose elements are those of the pieces, one behind the other. Raises Uncut where these are not all
    floating-point numbers, or all something else."""
    dtypes = {piece.tensor.dtype for piece in pieces}
    if len({DTYPES[each].kind for each in dtypes}) > 1:
        raise Uncut(f"its pieces are {', '.join(sorted(dtypes))}")
    dtype, _, file, start, stop, _ = pieces[0].tensor
    return Tensor(dtype, shape, file, start, stop, Stacked(tuple(pieces)))


def turned(held: StoredArray) -> Tensor:
    """A tensor with the rows and columns of each of its matrices exchanged. Raises Uncut where that cannot be."""
    rows, columns = matrix(held.tensor.shape)
    return _turned(held, (*held.tensor.shape[:-2], columns, rows), 0)


def turned_rows(held: StoredArray, number: int, top: int, rows: int) -> Tensor:
    """The columns of a matrix of a tensor, which is the one with this `number`, from `top` on, as `rows`. Raises as `turned` does."""
    height, columns = matrix(held.tensor.shape)
    return _turned(cut(held, number * height * columns, (height, columns)), (rows, height), top)


def _turned(held: StoredArray, shape: tuple[int, ...], top: int) -> Tensor:
    """Rows of the transposed matrices of a tensor, those from `top` on, as a tensor of `shape`."""
    name, tensor = held
    encoded, (_, columns) = tensor.encoded, matrix(tensor.shape)
    height = 0 if shape[-2] == columns else columns
    if encoded is None and tensor.dtype in TURNABLE:
        return tensor._replace(shape=shape, encoded=Encoded(Transposed(tensor.dtype, height, top), (StoredArray(name, tensor),)))
    if isinstance(encoded, Encoded) and isinstance(encoded.encoding, Scaled):
        scaled = encoded.encoding
        return tensor._replace(shape=shape, encoded=Encoded(Transposed(scaled.numbers, height, top, scaled), encoded.arrays))
    raise Uncut(f"numbers of {tensor.dtype} cannot be transposed")
