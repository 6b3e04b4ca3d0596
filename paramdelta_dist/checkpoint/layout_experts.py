"""Experts of a layer, which lie apart in one model and together in another, or with rows and columns exchanged: found without arithmetic.

A matrix of an expert is [outputs, inputs]. Together they are [experts, outputs, inputs] or, transposed, [experts, inputs, outputs]; where
gate and up are one tensor, all outputs of the gate come first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import NamedTuple

from paramdelta_dist.checkpoint.header import StoredArray, Tensor, shown
from paramdelta_dist.checkpoint.layout_found import Found
from paramdelta_dist.checkpoint.layout_names import Group, numbers_of
from paramdelta_dist.checkpoint.layout_table import FUSED, INPUTS_FIRST, INTERLEAVED
from paramdelta_dist.checkpoint.pieces import Uncut, cut_each, stacked, turned, turned_rows

_APART = re.compile(r"(.+\.experts)\.0\.(gate_proj|up_proj|down_proj)\.weight")
_TOGETHER = re.compile(r"(.+\.experts)\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?")

SAVE_ALIKE = (
    "save the model in the layout of the base (transformers: load it and `save_pretrained`, with `save_original_format=False` where the "
    "base is fused), or leave these out: `exclude` with a glob on their names"
)
"""The way on where two layouts cannot be brought together."""


class _Kept(NamedTuple):
    """Matrices of the experts of one or more layers, as one model keeps them."""

    group: Group
    parts: tuple[str, ...]
    apart: bool
    shape: tuple[int, ...]
    """Of the first tensor."""

    def matrices(self) -> dict[bool, tuple[int, int]]:
        """The shape that one matrix of an expert would have where they lie as they are (False), and where transposed (True)."""
        if self.apart:
            return {False: (self.shape[0], self.shape[1])} if len(self.shape) == 2 else {}
        if len(self.shape) != 3:
            return {}
        count, (_, one, other) = len(self.parts), self.shape
        return {way: (rows // count, columns) for way, rows, columns in ((False, one, other), (True, other, one)) if rows % count == 0}


_Module = dict[str, _Kept]
"""By the tensor of all experts, or by the matrix of one."""


def _modules(groups: Mapping[str, Group], tensors: Mapping[str, Tensor]) -> dict[str, _Module]:
    found: dict[str, _Module] = {}
    for core, group in groups.items():
        shape = tensors[group.names[0]].shape
        if match := _APART.fullmatch(core):
            found.setdefault(match[1], {})[match[2]] = _Kept(group, (match[2],), True, shape)
        elif match := _TOGETHER.fullmatch(core):
            found.setdefault(match[1], {})[match[2]] = _Kept(group, FUSED[match[2]], False, shape)
    return found


def put_experts_together(
    base: Mapping[str, Group], other: Mapping[str, Group], found: Found, types: Collection[str], counts: Counter[tuple[str, str]]
) -> None:
    """Find the experts of the base, of which these are the tensors that have no namesake, among those of the other model; what is made
    of how many is added to `counts`: the end of a name and the kind of relation."""
    theirs = _modules(other, found.other)
    for module, ours in _modules(base, found.base).items():
        if module in theirs:
            _Experts(ours, theirs[module], found, types, counts).settle()


class _Experts:
    """The experts of the layers whose names differ in numbers alone, in both models."""

    def __init__(self, ours: _Module, theirs: _Module, found: Found, types: Collection[str], counts: Counter[tuple[str, str]]) -> None:
        self._found, self._types, self._counts = found, types, counts
        self._held = {part: (kept, index) for kept in theirs.values() for index, part in enumerate(kept.parts)}
        self._wanted = [kept for kept in ours.values() if self._is_held(kept)]

    def _is_held(self, kept: _Kept) -> bool:
        return all(part in self._held and (self._held[part][0].parts, self._held[part][0].apart) != (kept.parts, kept.apart)
                   for part in kept.parts)  # fmt: skip

    def settle(self) -> None:
        if not self._wanted:
            return
        try:
            ours, theirs = self._ways()
            for kept in self._wanted:
                self._settle(kept, ours, theirs)
        except Uncut as problem:
            sources = {self._held[part][0].group.form: self._held[part][0] for kept in self._wanted for part in kept.parts}.values()
            names = [name for kept in self._wanted for name in kept.group.names]
            text = f"{len(names)} tensors of experts, such as {shown(names[0])} {list(self._wanted[0].shape)}, have no counterpart"
            first = next(iter(sources))
            self._found.refuse(
                names,
                [name for kept in sources for name in kept.group.names],
                f"{text}: {shown(first.group.names[0])} {list(first.shape)}: {problem}",
                SAVE_ALIKE,
            )

    def _ways(self) -> tuple[bool, bool]:
        """Whether those of the base, and those of the other, lie transposed. Raises Uncut where sizes do not say so."""
        left = {(ours, theirs) for ours in (False, True) for theirs in (False, True)}
        for kept in self._wanted:
            for part in kept.parts:
                left &= _alike(kept.matrices(), self._held[part][0].matrices())
        if not left:
            raise Uncut("the sizes do not fit")
        if len(left) > 1 and not INPUTS_FIRST.isdisjoint(self._types):
            fused = [any(not kept.apart for kept in side) for side in (self._wanted, [kept for kept, _ in self._held.values()])]
            left &= {(fused[0], fused[1])}
        if len(left) != 1:
            raise Uncut("its sizes do not say whether rows or columns are the outputs")
        return next(iter(left))

    def _settle(self, kept: _Kept, is_turned: bool, are_turned: bool) -> None:
        sources = [self._held[part] for part in kept.parts]
        fused = {source.parts for source, _ in sources if not source.apart} | ({kept.parts} if not kept.apart else set())
        if not INTERLEAVED.isdisjoint(self._types) and any(len(parts) > 1 for parts in fused):
            raise Uncut("the rows of gate and up lie in turns in this type of model")
        if is_turned and (len(kept.parts) > 1 or are_turned):
            raise Uncut("the base has the columns of gate and up side by side")
        if kept.apart:
            made, used = self._apart(kept, sources[0], are_turned), sources[0][0].group.names
        else:
            made, used = self._together(kept, sources, is_turned, are_turned)
        count = sum(len(source.group.names) for source in {source.group.form: source for source, _ in sources}.values())
        end = ".".join(kept.group.form.split(".")[-4 if kept.apart else -2 :]).replace("%s", "*")
        kind = f"{'per-expert' if sources[0][0].apart else 'fused'} tensor{'s' * (count > 1)}"
        relation = f"{count:,} {kind}" + (", transposed" * (is_turned != are_turned))
        self._counts[end, relation] += self._found.settle(made, used)

    def _apart(self, kept: _Kept, source: tuple[_Kept, int], are_turned: bool) -> dict[str, Tensor]:
        """The matrices of the base, taken out of tensors of all experts."""
        held, index = source
        wanted, made = set(kept.group.names), dict[str, Tensor]()
        for name in held.group.names:
            whole, layer = StoredArray(name, self._found.other[name]), numbers_of(name)
            if not 0 < whole.tensor.shape[0] <= len(wanted):  # before as many names are made as a header claims
                raise Uncut(f"it has {whole.tensor.shape[0]} experts, and the base {len(wanted)} matrices of them")
            names = [kept.group.name((*layer, str(expert))) for expert in range(whole.tensor.shape[0])]
            if not wanted.isdisjoint(names):
                made.update(zip(names, _matrices(whole, len(held.parts), index, are_turned), strict=True))
        if made.keys() != wanted:
            raise Uncut(f"it has {len(made)} matrices of experts, and the base {len(wanted)}")
        for name in {made[name].shape: name for name in made}.values():
            _require(StoredArray(name, made[name]), kept.shape)
        return made

    def _together(
        self, kept: _Kept, sources: Sequence[tuple[_Kept, int]], is_turned: bool, are_turned: bool
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors of the base that have all experts, made of matrices; and the names of these."""
        made, used = dict[str, Tensor](), list[str]()
        for name in kept.group.names:
            layer, wanted = numbers_of(name), self._found.base[name].shape
            if len(wanted) != 3 or wanted[1] % len(sources) or not prod(wanted):
                raise Uncut("the sizes do not fit")
            columns = [self._column(held, index, layer, wanted[0], are_turned) for held, index in sources]
            pieces = [piece for row in zip(*columns, strict=True) for piece in row]
            shape = (wanted[2], wanted[1]) if is_turned else (wanted[1] // len(sources), wanted[2])
            for each in {piece.tensor.shape: piece for piece in pieces}.values():
                _require(each, shape)
            used += [piece.name for piece in pieces]
            if is_turned:
                pieces = [StoredArray(piece.name, turned(piece)) for piece in pieces]
            made[name] = stacked(pieces, wanted)
        return made, used

    def _column(self, held: _Kept, index: int, layer: Sequence[str], experts: int, are_turned: bool) -> list[StoredArray]:
        """One matrix of each expert of a layer."""
        names = [held.group.name((*layer, str(expert))) for expert in range(experts)] if held.apart else [held.group.name(layer)]
        tensors = [*map(self._found.other.get, names)]
        if None in tensors:
            raise Uncut(f"{shown(names[tensors.index(None)])} is missing")
        arrays = [StoredArray(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None]
        if held.apart:
            return arrays
        if arrays[0].tensor.shape[:1] != (experts,):
            raise Uncut(f"it is {list(arrays[0].tensor.shape)}, and the base has {experts} experts")
        matrices = _matrices(arrays[0], len(held.parts), index, are_turned)
        return [StoredArray(names[0], each) for each in matrices]


def _alike(ours: Mapping[bool, tuple[int, int]], theirs: Mapping[bool, tuple[int, int]]) -> set[tuple[bool, bool]]:
    return {(way, turn) for way, shape in ours.items() for turn, held in theirs.items() if shape == held}


def _matrices(whole: StoredArray, parts: int, index: int, is_turned: bool) -> list[Tensor]:
    """One matrix of each expert, out of the tensor of all."""
    shape = whole.tensor.shape
    if len(shape) != 3:
        raise Uncut("the sizes do not fit")
    experts, rows, columns = shape
    if is_turned:
        height = columns // parts
        return [turned_rows(whole, expert, index * height, height) for expert in range(experts)]
    height = rows // parts
    begin, step = index * height * columns, rows * columns
    return cut_each(whole, range(begin, begin + experts * step, step) if step else [0] * experts, (height, columns))


def _require(piece: StoredArray, shape: tuple[int, ...]) -> None:
    if piece.tensor.shape != shape:
        raise Uncut(f"{shown(piece.name)} gives {list(piece.tensor.shape)}, the base needs {list(shape)}")


def turn_experts(pairs: Mapping[str, Sequence[tuple[str, str]]], found: Found, counts: Counter[tuple[str, str]]) -> None:
    """Exchange rows and columns of experts that lie together in both models, where sizes say that they lie the other way in one.

    `pairs` are names of the base and of the other, by the one spelling of their families. The tensors of a layer all lie in one way:
    where the matrices of one are squares, the others decide.
    """
    modules: dict[str, dict[str, set[bool]]] = {}
    for core, names in pairs.items():
        if match := _TOGETHER.fullmatch(core):
            ours, theirs = names[0]
            modules.setdefault(match[1], {})[core] = _ways_of(found.base[ours].shape, found.other[theirs].shape)
    for families in modules.values():
        told = {way for ways in families.values() if len(ways) == 1 for way in ways}
        for core, ways in families.items():
            if ways == {True} or (len(ways) == 2 and told == {True}):
                _turn(pairs[core], found, counts)


def _ways_of(ours: tuple[int, ...], theirs: tuple[int, ...]) -> set[bool]:
    """Whether one tensor may be the other as it is (False), and transposed (True)."""
    if len(ours) != 3:
        return set()
    return {way for way, shape in ((False, theirs), (True, (*theirs[:1], *theirs[:0:-1]))) if ours == shape}


def _turn(pairs: Sequence[tuple[str, str]], found: Found, counts: Counter[tuple[str, str]]) -> None:
    fitting = [(ours, theirs) for ours, theirs in pairs if True in _ways_of(found.base[ours].shape, found.other[theirs].shape)]
    try:
        made = {ours: turned(StoredArray(theirs, found.other[theirs])) for ours, theirs in fitting}
    except Uncut as problem:
        ours, theirs = fitting[0]
        text = f"{len(fitting)} tensors of experts, such as {shown(ours)}, lie transposed: {shown(theirs)}: {problem}"
        found.refuse([ours for ours, _ in fitting], [theirs for _, theirs in fitting], text, SAVE_ALIKE)
        return
    end = ".".join(fitting[0][0].split(".")[-2:])
    counts[end, "transposed"] += found.settle(made, [theirs for _, theirs in fitting])
