"""A model under the names and in the layout of the base: renamed, experts apart or together, transposed, without parts that nobody needs.

The base is never changed, and no number is: what is found is where the numbers lie. Nothing is guessed: where sizes allow several ways
and the type of the model does not tell, that is a problem with a way on, and what no rule knows stays as it is, to be told as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import AS_IT_IS, Checkpoint, Pairing
from paramdelta_dist.checkpoint.extra_parts import MTP, Families, Part, parts_beyond
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import StoredArray, Tensor, shown
from paramdelta_dist.checkpoint.layout_experts import SAVE_ALIKE, put_experts_together, turn_experts
from paramdelta_dist.checkpoint.layout_found import Found
from paramdelta_dist.checkpoint.layout_names import Group, Names, Spelling, numbers_of
from paramdelta_dist.checkpoint.layout_table import Joined, families_of
from paramdelta_dist.checkpoint.pieces import Uncut, cut, stacked
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.checkpoint.vocabulary import is_vocabulary_tensor
from paramdelta_dist.checkpoint.wrappers import language_configs
from paramdelta_dist.storage import redact

PLACE = 512
"""Bytes of what is known of a tensor of a model that is not as the base has it, while and after it is found; measured 480."""


def paired(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Another model with the names and shapes of the base, as far as they can be found; its `pairing` says what was done, what cannot be
    and what it lacks. The very same where there is nothing to do, and for an adapter, which has the names of a model already."""
    return all_paired({"base": base, "other": other}, "base")["other"]


def all_paired(models: Mapping[str, Checkpoint], base: str, room: Room | None = None) -> dict[str, Checkpoint]:
    """The same of several, by the same keys, one of which is the `base`'s: those that share their tensors go on doing so. Raises OverBudget
    where there is no `room` besides."""
    ours = models[base]
    made: dict[tuple[object, ...], _Pair] = {}
    found = {}
    for key, model in models.items():
        if model is ours or model.tensors is ours.tensors or model.adapter or _are_alike(ours.tensors, model.tensors):
            found[key] = model
            continue
        same = id(model.tensors), _types(model.config), _layers(model.config)
        if same not in made:
            (room or Room()).take(len(model.tensors) * PLACE, f"{redact(model.url)}: tensors by the names of the base")
            made[same] = _Pair(ours, model)
        found[key] = made[same].of(model)
    return found


def _are_alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    if ours.keys() != theirs.keys():
        return False
    return all(tensor.shape == theirs[name].shape for name, tensor in ours.items())


def _types(config: Mapping[str, Any] | None) -> frozenset[str]:
    return frozenset(str(table["model_type"]) for table in language_configs(config or {}) if isinstance(table.get("model_type"), str))


def _layers(config: Mapping[str, Any] | None) -> int | None:
    """Layers of the language model, without those that predict more tokens."""
    found = [table.get("num_hidden_layers") for table in language_configs(config or {})]
    return next((count for count in found if isinstance(count, int) and not isinstance(count, bool)), None)


class _Pair:
    """The base and one other model."""

    def __init__(self, base: Checkpoint, other: Checkpoint) -> None:
        types = _types(base.config) | _types(other.config)
        spelling = Spelling(types)
        self._base, self._other = base, other
        self._ours, self._theirs = Names(base.tensors, spelling), Names(other.tensors, spelling)
        self._found = Found(base.tensors, other.tensors)
        self._counts: Counter[tuple[str, str]] = Counter()
        """Tensors of the base by the end of their names and the relation to those of the other."""
        renamed = self._rename()
        self._names = {source: name for name, source in renamed}
        """Names of the base, by those of the other that are the same tensors."""
        put_experts_together(self._ours.groups(self._have), self._theirs.groups(self._gone), self._found, types, self._counts)
        for family in families_of(types):
            for joined in family.joined:
                self._join(joined)
        turn_experts(self._experts(renamed), self._found, self._counts)
        self._tensors, self._pairing = self._result(self._notes(renamed))

    def of(self, model: Checkpoint) -> Checkpoint:
        """This model, whose tensors are those of the other."""
        if self._pairing == AS_IT_IS:
            return model
        tie = model.tie
        if tie is not None:
            embedding, *copies = [self._names.get(name, name) for name in tie.names]
            tie = tie._replace(embedding=embedding, copies=tuple(copies))
        return replace(model, tensors=self._tensors, tie=tie, pairing=self._pairing)

    @property
    def _have(self) -> Mapping[str, object]:
        """The names that the base and the other both have, as far as is known."""
        return {**self._other.tensors, **self._found.tensors, **dict.fromkeys(self._found.told)}

    @property
    def _gone(self) -> Mapping[str, object]:
        """The tensors of the other that have a place in the base, as far as is known."""
        return {**self._base.tensors, **dict.fromkeys(self._found.used)}

    def _rename(self) -> list[tuple[str, str]]:
        """Settle the tensors that have another name alone; returns these names: the base's, and the other's."""
        ours, theirs = self._ours.groups(self._other.tensors), self._theirs.groups(self._base.tensors)
        pairs = [pair for core, group in ours.items() if core in theirs for pair in self._same(group, theirs[core])]
        self._found.settle({name: self._other.tensors[source] for name, source in pairs}, [source for _, source in pairs])
        return pairs

    def _same(self, group: Group, their: Group) -> Iterator[tuple[str, str]]:
        """Names of the base with those of the other, of which one could be the other."""
        if group.slots != their.slots:
            return
        held, ours, sources = self._other.tensors, self._base.tensors, set(their.names)
        for name in group.names:
            source = their.form % numbers_of(name)
            if source in sources and _may_be(name, ours[name].shape, held[source].shape):
                yield name, source

    def _experts(self, renamed: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
        """Tensors with three dimensions that both models have, by the one spelling of their names."""
        source_of = dict(renamed)
        found: dict[str, list[tuple[str, str]]] = {}
        for family, names in self._base.tensors.families.items():
            if len(self._base.tensors[names[0]].shape) != 3 or ".experts." not in (core := self._ours.cores[family]):
                continue
            pairs = [(name, source_of.get(name, name)) for name in names if name not in self._found.told]
            if held := [pair for pair in pairs if pair[1] in self._other.tensors]:
                found[core] = held
        return found

    def _join(self, joined: Joined) -> None:
        ours, theirs = self._ours.groups(self._have), self._theirs.groups(self._gone)
        for side, one, other in ((True, ours, theirs), (False, theirs, ours)):
            for core, whole in one.items():
                if f".{core}".endswith(joined.whole if joined.whole.startswith(".") else f".{joined.whole}"):
                    parts = _parts(core, joined, other)
                    if parts and all(part.slots == whole.slots for part in parts):
                        self._settle_joined(whole, parts, is_whole=side)

    def _settle_joined(self, whole: Group, parts: list[Group], *, is_whole: bool) -> None:
        """Settle what is one tensor in one model and several, one behind the other, in the other: `is_whole` in the base."""
        rows = [(name, [part.name(numbers_of(name)) for part in parts]) for name in whole.names]
        found, relation = self._found, f"{len(parts) * len(rows):,} tensors, one behind the other" if is_whole else "rows of one tensor"
        try:
            if is_whole:
                made = {name: self._concatenated(name, names) for name, names in rows}
            else:
                made = dict(pair for name, names in rows for pair in self._split(name, names))
        except (Uncut, KeyError) as problem:
            names = [name for name, _ in rows] if is_whole else [name for _, each in rows for name in each]
            sources = [name for _, each in rows for name in each] if is_whole else [name for name, _ in rows]
            reason = f"{shown(str(problem.args[0]))} is missing" if isinstance(problem, KeyError) else str(problem)
            text = f"{len(names)} tensors, such as {shown(names[0])}, cannot be had from {shown(sources[0])}: {reason}"
            found.refuse([name for name in names if name in self._base.tensors], sources, text, SAVE_ALIKE)
            return
        sources = [name for _, each in rows for name in each] if is_whole else whole.names
        self._counts[".".join(whole.form.split(".")[-2:]).replace("%s", "*"), relation] += found.settle(made, sources)

    def _concatenated(self, name: str, names: list[str]) -> Tensor:
        shape, pieces = self._base.tensors[name].shape, [StoredArray(each, self._other.tensors[each]) for each in names]
        _require_sum(shape, [piece.tensor.shape for piece in pieces])
        return stacked(pieces, shape)

    def _split(self, name: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        held, shapes = StoredArray(name, self._other.tensors[name]), [self._base.tensors[each].shape for each in names]
        _require_sum(held.tensor.shape, shapes)
        first = 0
        for each, shape in zip(names, shapes, strict=True):
            piece = cut(held, first, shape).tensor
            first += piece.parameters
            yield each, piece

    def _result(self, notes: list[str]) -> tuple[Tensors, Pairing]:
        """The tensors by the names of the base, what the base has beyond them, and what they have beyond it."""
        held, found = self._other.tensors, self._found
        have = self._have
        lacking = {name for name in self._base.tensors if name not in have}
        gone = self._gone
        surplus = {name for name in held if name not in gone}
        ours = parts_beyond(Families(self._base.tensors.families, self._ours.cores, _layers(self._base.config)), lacking)
        theirs = parts_beyond(Families(held.families, self._theirs.cores, _layers(self._other.config)), surplus)
        unlike = {part.kind for part in ours} & {part.kind for part in theirs}  # the same by other names, which no rule knows
        absent = {part: names for part, names in ours.items() if part.kind not in unlike}
        dropped = {part: names for part, names in theirs.items() if part.kind not in unlike}
        notes = [*notes, *_noted(absent, "lacks", "it stays the base's"), *_noted(dropped, "has", "it is not in the base, and left out")]
        pairing = Pairing(
            tuple(notes),
            tuple(found.problems),
            frozenset(found.told),
            frozenset(name for names in absent.values() for name in names),
            frozenset(name for names in dropped.values() for name in names),
        )
        if not found.tensors and not found.used:
            return held, pairing
        without = {name for name in found.used if name not in self._base.tensors}
        common = {name: held[name] for name in self._base.tensors if name in held} | found.tensors
        tensors = Tensors((name, common[name]) for name in self._base.tensors if name in common)
        tensors.update((name, tensor) for name, tensor in held.items() if name not in self._base.tensors and name not in without)
        return tensors, pairing

    def _notes(self, renamed: list[tuple[str, str]]) -> list[str]:
        prefixes: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for name, source in renamed:
            prefixes.setdefault(_difference(name, source), []).append((name, source))
        notes = []
        others: list[tuple[str, str]] = []
        for (ours, theirs), pairs in prefixes.items():
            if len(pairs) == 1 or _is_inside(ours, theirs):
                others += pairs
            else:
                notes.append(f"{len(pairs):,} × {shown(ours + '…')} ← {shown(theirs + '…')}")
        if others:
            name, source = others[0]
            notes.append(f"{len(others):,} × another name, such as {shown(name)} ← {shown(source)}")
        return notes + [f"{count:,} × {end} ← {relation}" for (end, relation), count in self._counts.items()]


def _may_be(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape may be that of another name and shape: the same, transposed experts, or another vocabulary."""
    if ours == theirs:
        return True
    if len(ours) == len(theirs) == 3 and ".experts." in name:
        return ours == (theirs[0], theirs[2], theirs[1])
    return is_vocabulary_tensor(name) and len(ours) == len(theirs) and ours[1:] == theirs[1:]


def _parts(core: str, joined: Joined, groups: Mapping[str, Group]) -> list[Group] | None:
    """The tensors that are parts of a whole one; None where one is not there."""
    before = core[: len(core) - len(joined.whole.removeprefix("."))] if core.endswith(joined.whole.removeprefix(".")) else ""
    ends = [part.removeprefix(".") for part in joined.parts]
    if "#" in ends[0]:
        numbered = (before + ends[0].replace("#", str(number)) for number in range(len(groups)))
        found = []
        for name in numbered:
            if name not in groups:
                break
            found.append(groups[name])
        return found or None
    names = [before + end for end in ends]
    return [groups[name] for name in names] if all(name in groups for name in names) else None


def _require_sum(whole: tuple[int, ...], parts: list[tuple[int, ...]]) -> None:
    if any(part[1:] != whole[1:] or not part for part in parts) or sum(part[0] for part in parts) != whole[0]:
        raise Uncut(f"{[list(part) for part in parts]} do not make {list(whole)}")


def _difference(name: str, source: str) -> tuple[str, str]:
    """The beginnings of two names, without the whole modules at their ends that are the same."""
    ours, theirs = name.split("."), source.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)


def _is_inside(ours: str, theirs: str) -> bool:
    """Whether names differ behind a number, and so not for all of a model."""
    return any(part.isdecimal() for part in f"{ours}{theirs}".split("."))


def _noted(parts: Mapping[Part, list[str]], verb: str, outcome: str) -> Iterator[str]:
    """Notes about parts that one model goes without, one for each kind."""
    kinds: dict[str, list[str]] = {}
    for part, names in parts.items():
        kinds.setdefault(part.kind, []).extend(names)
    for kind, names in kinds.items():
        count = sum(part.kind == kind for part in parts)
        several = f"{count} {kind}s" if kind == MTP and count > 1 else f"the {kind}"
        yield f"{verb} {several}: {len(names):,} tensors, such as {shown(names[0])}; {outcome}"
