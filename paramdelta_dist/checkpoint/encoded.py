"""Logical tensors of a checkpoint: one for each quantised matrix that can be decoded, in place of its codes, scales and companions.

Siblings decide what is quantised, not the config's lists of what is left out. What has no scale, or parts that no scheme here has,
stays as it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.declared import Declared, declared
from paramdelta_dist.checkpoint.families import Tensors, dtypes_of
from paramdelta_dist.checkpoint.header import Encoded, StoredArray, Tensor, shown
from paramdelta_dist.checkpoint.parts import part_of
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.checkpoint.schemes import ALONG, BESIDE, CODE_DTYPES, SPELLINGS, Array, Form, Misfit, Spelling, form_of
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import redact

MATRIX = 768
"""Bytes of what is known of a quantised matrix besides what its headers say, while and after it is found; measured 730."""
_FEW = 3
"""Matrices that a message shows."""


def with_logical_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, whose tensors are logical ones; the very same where none is quantised in a way that can be decoded.

    Raises CheckpointError where scales do not have the shape that their codes ask for.
    """
    return with_logical({checkpoint.url: checkpoint})[checkpoint.url]


def with_logical(checkpoints: Mapping[str, Checkpoint], room: Room | None = None) -> dict[str, Checkpoint]:
    """The same of several, by the same keys: those that share their tensors, and whose configs say the same of them, share the
    logical ones. Raises OverBudget where there is no `room` besides."""
    made: dict[tuple[int, Declared], Tensors] = {}
    found = {}
    for key, checkpoint in checkpoints.items():
        stored, said = checkpoint.tensors, declared(checkpoint.config)
        if dtypes_of(stored).isdisjoint(CODE_DTYPES) or said.rotated:
            found[key] = checkpoint
            continue
        if (id(stored), said) not in made:
            made[id(stored), said] = _logical(stored, said, redact(checkpoint.url), room or Room())
        tensors = made[id(stored), said]
        found[key] = checkpoint if tensors is stored else replace(checkpoint, tensors=tensors)
    return found


class _Family(NamedTuple):
    """Matrices whose names differ in numbers alone."""

    codes: list[str]
    """Names of the codes of each."""
    spelling: Spelling
    siblings: tuple[_Sibling, ...]
    """The other parts that some of them have, in the order in which they are decoded."""


class _Sibling(NamedTuple):
    """The place of the name of a part, told from that of the codes."""

    cut: int
    """Characters taken off the end of the name of the codes."""
    end: str
    """Text that takes their place."""
    names: list[str]


class _Renamed(NamedTuple):
    """A logical tensor, in the place of its codes."""

    name: str
    tensor: Tensor


_Key = tuple[tuple[str, tuple[int, ...]] | None, ...]
_Row = tuple[StoredArray | None, ...]
"""The parts of one matrix: codes, and those siblings that it has."""


def _logical(stored: Tensors, said: Declared, where: str, room: Room) -> Tensors:
    families = [*_families(stored.families)]
    matrices = sum(len(family.codes) for family in families)
    room.take(matrices * MATRIX, f"{where}: what is quantised")
    tensors: dict[str, Tensor | _Renamed] = dict(stored)
    misfits = [misfit for family in families for misfit in _decode(family, stored, said, tensors)]
    if misfits:
        more = f", and {len(misfits) - _FEW} more" if len(misfits) > _FEW else ""
        raise CheckpointError(
            f"{where}: scales that do not fit their codes: {'; '.join(misfits[:_FEW])}{more}. Correct what config.json says of the size of "
            "blocks (`quantization_config`), or get the model's files once more from where they came"
        )
    if len(tensors) == len(stored):  # a matrix has two parts at least
        return stored
    return Tensors((name, found) if type(found) is Tensor else found for name, found in tensors.items())  # type: ignore[misc]


def _families(families: Mapping[str, list[str]]) -> Iterator[_Family]:
    """Those that may be quantised, as their names are."""
    groups: dict[str, dict[str, str]] = {}
    """The name of each family, by what the parts of a matrix have in common and by the end of the name."""
    for family in families:
        stem, end, _ = part_of(family)
        groups.setdefault(stem, {})[end] = family
    for (stem, ends), spelling in product(groups.items(), SPELLINGS):  # layers of one model may be spelled differently
        if spelling.codes not in ends or ends.keys().isdisjoint(spelling.scales):
            continue
        cut, decoded = len(spelling.codes), (*spelling.scales, spelling.whole)
        others = sorted(ends.keys() - {spelling.codes}, key=lambda end: (decoded.index(end) if end in decoded else len(decoded), end))
        siblings = [_Sibling(cut, end, families[ends[end]]) for end in others]
        for last, beside in BESIDE.items():
            if stem.endswith(last):
                named = ((end, families.get(stem.removesuffix(last) + end)) for end in beside)
                siblings += [_Sibling(cut + len(last), end, names) for end, names in named if names]
        yield _Family(families[ends[spelling.codes]], spelling, tuple(siblings))


def _decode(family: _Family, stored: Tensors, said: Declared, tensors: dict[str, Tensor | _Renamed]) -> list[str]:
    """Put the logical tensors of a family in the place of its codes, and take its other parts away; those whose parts do not fit are
    returned, in words."""
    alike: dict[_Key, list[_Row]] = {}
    for key, row in _rows(family, stored):
        try:
            alike[key].append(row)
        except KeyError:
            alike[key] = [row]
    misfits: list[str] = []
    for rows in alike.values():
        form = _reading(family, rows[0], said)
        if form is None:
            continue
        matrices = [tuple(filter(None, row)) for row in rows]
        if isinstance(form, str):
            misfits += [f"{' with '.join(f'{shown(name)} {list(tensor.shape)}' for name, tensor in row[:2])}, {form}" for row in matrices]
            continue
        _replace(family.spelling, matrices, form, said.dtype, tensors)
    return misfits


def _replace(
    spelling: Spelling, matrices: Sequence[tuple[StoredArray, ...]], form: Form, dtype: str, tensors: dict[str, Tensor | _Renamed]
) -> None:
    """Put logical tensors of one form in the place of their arrays."""
    encoding, shape = form
    cut, end = len(spelling.codes), spelling.logical
    for arrays in matrices:
        name, (_, _, file, start, stop, _) = arrays[0]
        logical = Tensor(dtype, shape, file, start, stop, Encoded(encoding, arrays))
        tensors[name] = logical if spelling.codes == end else _Renamed(name[: len(name) - cut] + end, logical)
        for part in arrays[1:]:
            tensors.pop(part.name, None)


def _rows(family: _Family, stored: Tensors) -> Iterator[tuple[_Key, _Row]]:
    """The parts of each matrix of a family, after dtypes and shapes of all of them."""
    codes = family.codes
    columns: list[list[StoredArray] | list[StoredArray | None]] = [_stored(codes, stored)]
    for cut, end, names in family.siblings:
        wanted = [name[:-cut] + end for name in codes] if cut else [name + end for name in codes]
        if wanted == names:
            columns.append(_stored(names, stored))
        else:
            held = dict(zip(names, _stored(names, stored), strict=True))
            columns.append([*map(held.get, wanted)])
    keys = zip(*[[part and part[1][:2] for part in column] for column in columns], strict=True)
    return zip(keys, zip(*columns, strict=True), strict=True)


_record = partial(tuple.__new__, StoredArray)


def _stored(names: Sequence[str], stored: Tensors) -> list[StoredArray]:
    return [*map(_record, zip(names, map(stored.__getitem__, names), strict=True))]


def _reading(family: _Family, row: _Row, said: Declared) -> Form | str | None:
    """The form of a matrix; None where its parts are of no scheme that can be decoded, and words where they do not fit."""
    spelling = family.spelling
    there = {sibling.end: part.tensor for sibling, part in zip(family.siblings, row[1:], strict=True) if part}
    scales = [end for end in spelling.scales if end in there]
    whole = [spelling.whole] if spelling.whole and spelling.whole in there else []
    along = [end for end in there if end in ALONG]
    if row[0] is None or len(scales) != 1 or len(there) > len(scales) + len(whole) + len(along):
        return None
    decoded = [Array(tensor.dtype, tensor.shape) for tensor in (row[0].tensor, *[there[end] for end in (*scales, *whole)])]
    try:
        return form_of(spelling.codes, decoded, spelling.does, said)
    except Misfit as misfit:
        return str(misfit)
