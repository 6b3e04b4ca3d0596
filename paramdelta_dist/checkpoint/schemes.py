"""The schemes that can be decoded, as data: which parts a matrix is quantised in, in which dtypes, and which numbers these stand for.

Names and dtypes of the parts tell the scheme, the shape of the scales the blocks: a config may say several things, of which those count
that fit, and a block that it does not name is never found by dividing sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from paramdelta_dist.checkpoint.declared import Declared, Grid
from paramdelta_dist.kernels.encodings import Scaled, matrix

Shape = tuple[int, ...]


class Array(NamedTuple):
    """Dtype and shape of a part."""

    dtype: str
    shape: Shape


class Spelling(NamedTuple):
    """The ends of the names of the parts of one matrix, after what they share."""

    codes: str
    logical: str
    """The end of the name that the matrix has where it is not quantised."""
    scales: tuple[str, ...]
    whole: str = ""
    """Of the number for all of the tensor."""
    does: str = ""
    """`multiplies` or `divides`, as `Scaled.whole`."""


SPELLINGS = (
    Spelling(".weight_packed", ".weight", (".weight_scale",), ".weight_global_scale", "divides"),
    Spelling(
        ".weight", ".weight", (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight"), ".weight_scale_2", "multiplies"
    ),
    Spelling("_blocks", "", ("_scales",)),
    Spelling("", "", ("_scale_inv", "_scale")),
)  # fmt: skip
"""A matrix whose names fit several, or have more parts than one of them, is of none."""

BESIDE = {
    ".q_proj": (".q_proj.q_scale", ".q_scale"),
    ".k_proj": (".k_proj.k_scale", ".k_scale"),
    ".v_proj": (".v_proj.v_scale", ".v_scale"),
}
"""Scales of the cache of keys and values, by the end of the name of the matrix that makes them, in place of that end."""
ALONG = frozenset({
    ".weight_shape", ".input_scale", ".activation_scale", ".input_global_scale", ".output_scale", ".qscale_act",
    "_input_scale", "_activation_scale", "_input_global_scale", *(end for ends in BESIDE.values() for end in ends),
})  # fmt: skip
"""Ends of the names of what goes with a matrix without changing its numbers."""

_FLOATS = frozenset({"F32", "F64", "BF16", "F16"})
_BYTES = frozenset({"F8_E8M0", "U8"})
"""Dtypes of a byte that is an exponent."""


class Codes(NamedTuple):
    """One kind of codes, by the parts that it comes in."""

    code: str
    """A key of CODE_BITS."""
    ends: frozenset[str]
    """Of the name, as in SPELLINGS."""
    dtype: str
    scales: frozenset[str]
    """Dtypes of the scales."""
    group: int = 0
    """Columns that the format itself gives one scale; 0 where the config says which blocks do."""
    whole: bool = False
    """A number for all of the tensor may be there."""


KINDS = (
    Codes("e4m3", frozenset({".weight", ""}), "F8_E4M3", _FLOATS),
    Codes("e4m3", frozenset({".weight", ""}), "F8_E4M3", _BYTES, group=32),
    Codes("e2m1", frozenset({".weight", ".weight_packed"}), "U8", frozenset({"F8_E4M3"}), group=16, whole=True),
    Codes("e2m1", frozenset({".weight", ".weight_packed", "_blocks"}), "U8", _BYTES, group=32),
    Codes("e2m1", frozenset({".weight"}), "I8", frozenset({"F8_E8M0"}), group=32),
    Codes("int4", frozenset({".weight_packed"}), "I32", _FLOATS),
)
CODE_DTYPES = frozenset(kind.dtype for kind in KINDS)
_TYPES = {"e4m3": ("float", 8), "e2m1": ("float", 4), "int4": ("int", 4)}
"""Of a code: what a config calls it."""


class Form(NamedTuple):
    """The numbers that parts of certain dtypes and shapes stand for."""

    encoding: Scaled
    shape: Shape
    """Of the matrix, or of several."""


class Misfit(Exception):
    """Scales do not have the shape that codes ask for; the text says which shapes would do."""


def kind_of(end: str, codes: str, scale: str, whole: bool) -> Codes | None:
    """The kind of codes that parts of these dtypes are; None where none is known. `end` is that of the name of the codes, `whole`
    says that a number for all of the tensor is there."""
    found = (kind for kind in KINDS if end in kind.ends and codes == kind.dtype and scale in kind.scales)
    return next((kind for kind in found if kind.whole or not whole), None)


def form_of(end: str, parts: Sequence[Array], does: str, declared: Declared) -> Form | None:
    """The form of codes, scales and what may be there for all of the tensor, in this order, given the end of the codes' name, what
    the last does, and the config. None where they are of no scheme that can be decoded; raises Misfit where only their shapes do
    not go together."""
    codes, scale, *whole = parts
    kind = kind_of(end, codes.dtype, scale.dtype, bool(whole))
    if kind is None or any(each.dtype != "F32" or prod(each.shape) != 1 for each in whole):
        return None
    shape = _logical(kind, end, codes.shape)
    is_common = end == ".weight" and scale.dtype in _BYTES  # and a byte may be any other integer
    if shape is None or _is_out_of_reach(kind, shape, scale.shape, declared, is_common):
        return None
    grid = _grid(kind, shape, scale.shape, declared)
    stored = "E8M0" if scale.dtype in _BYTES else scale.dtype
    powers = declared.powers_of_two and scale.dtype in _FLOATS
    return Form(Scaled(kind.code, grid.rows, grid.columns, stored, powers, does if whole else ""), shape)


def _logical(kind: Codes, end: str, shape: Shape) -> Shape | None:
    """The shape of the numbers of codes of a shape; None where codes of this kind have no such shape."""
    if end == "_blocks":
        return (*shape[:-2], shape[-2] * 32) if len(shape) > 2 and shape[-1] == 16 else None
    if len(shape) < (1 if kind.code == "e4m3" else 2):
        return None
    return (*shape[:-1], shape[-1] * {"e4m3": 1, "e2m1": 2, "int4": 8}[kind.code])


def _is_out_of_reach(kind: Codes, shape: Shape, scales: Shape, declared: Declared, is_common: bool) -> bool:
    """Whether codes of a kind that is known are meant in a way that is not. `is_common` says that other schemes have the same names
    and dtypes, so that shapes decide too."""
    if kind.code == "int4":
        integers = [group for group in declared.groups if group.kind == "int"]
        fitting = [group for group in integers if _fits(group.grid, (*shape[:-1], shape[-1] * 4 // group.bits), scales)]
        return not integers or any(group.bits != 4 or not group.symmetric for group in fitting or integers)
    if kind.code == "e2m1":
        ours = _expected(Grid(1, kind.group), shape)
        six = any((group.kind, group.bits) == ("float", 6) for group in declared.groups)  # in the same dtypes, under the same names
        return prod(scales) > prod(ours) or ((six or is_common) and scales != ours)  # more are padded, in an order that a unit wants
    return len(shape) > 2 and declared.method == "fbgemm_fp8"  # [in, out], with scales by output


def _grid(kind: Codes, shape: Shape, scales: Shape, declared: Declared) -> Grid:
    """The blocks that have as many scales as there are. Raises Misfit where none, or several, do."""
    stated = [Grid(1, kind.group)] if kind.group else []
    if kind.code != "e2m1":
        stated += [group.grid for group in declared.groups if (group.kind, group.bits) == _TYPES[kind.code]]
    fitting = {_clipped(grid, shape): grid for grid in reversed(stated) if _fits(grid, shape, scales)}
    if len(fitting) > 1:
        raise Misfit(f"which blocks of {' and of '.join(sorted(_said(grid) for grid in fitting))} both have")
    if fitting:
        return next(iter(fitting.values()))
    if kind.code == "e4m3":
        for grid in _evident(shape):
            if _fits(grid, shape, scales):
                return grid
    if not stated:
        raise Misfit("and config.json does not say which blocks share a scale (`quantization_config`: `weight_block_size`)")
    raise Misfit(" or ".join(f"blocks of {_said(grid)} have {list(_expected(grid, shape))}" for grid in dict.fromkeys(stated)))


def _evident(shape: Shape) -> Iterator[Grid]:
    """Blocks that the number of scales tells by itself: one for all, one a row, one a matrix."""
    yield from (Grid(0, 0), Grid(1, 0), Grid(matrix(shape)[0], 0))


def _clipped(grid: Grid, shape: Shape) -> Grid:
    rows, columns = matrix(shape)
    return Grid(min(grid.rows or rows, rows), min(grid.columns or columns, columns))


def _expected(grid: Grid, shape: Shape) -> Shape:
    """The shape of the scales of a tensor."""
    if not grid.rows:
        return (1,)
    return (*shape[:-2], *Scaled("e4m3", grid.rows, grid.columns, "F32").blocks(shape))


def _fits(grid: Grid, shape: Shape, scales: Shape) -> bool:
    """Whether scales have the shape that those of blocks have; dimensions of one at their end may be left out."""
    if not grid.rows:
        return prod(scales) == 1
    wanted = _expected(grid, shape)
    if scales == wanted:
        return True
    return grid.columns == 0 and scales in (wanted[:-1], wanted[:-2] if wanted[-2] == 1 else wanted) and scales != ()


def _said(grid: Grid) -> str:
    rows, columns = grid
    return f"{rows} × {columns}" if rows and columns else "a row" if rows else "the tensor"
