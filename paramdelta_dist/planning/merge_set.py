"""A merge set: the merges of a run, made from one reading of the inputs. Those of a sweep, or a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint
from paramdelta_dist.errors import UsageError
from paramdelta_dist.planning.build import build_plan
from paramdelta_dist.planning.plan import MergePlan, Shard
from paramdelta_dist.planning.sources import Source, Stack
from paramdelta_dist.planning.vocabulary_rows import Vocabularies
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import Identity


@dataclass(frozen=True)
class MergeSet:
    """The merges of a run. They read what any of them needs, once."""

    recipe: Recipe
    points: dict[str, MergePlan]
    """The plan of each merge by its name in the sweep: what it alone would do, and what is kept beside its output."""
    values: dict[str, dict[str, Any]]
    """Values that the sweep sets at each point, by parameter."""
    models: tuple[str, ...]
    """URLs of the models that any point reads, the base first."""
    readings: dict[str, tuple[Shard, ...]]
    """The shards of each point as they are made: every point reads what any of them needs, in the same tiles."""

    @classmethod
    def of(cls, plan: MergePlan) -> MergeSet:
        """A single merge, without a name."""
        return cls(plan.recipe, {"": plan}, {"": {}}, plan.models, {"": plan.shards})

    @property
    def is_sweep(self) -> bool:
        """Whether the outputs are folders below that of the recipe, which is written down in their midst."""
        return bool(self.recipe.sweep)

    @property
    def reading(self) -> MergePlan:
        """The merge of the first point, if it reads what any of them needs; with the fingerprint of the set."""
        name, first = next(iter(self.points.items()))
        shards = self.readings[name]
        calls = shards[0].calls if shards else first.calls
        return replace(first, models=self.models, shards=shards, calls=calls, fingerprint=self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Of all that decides the bytes of any point."""
        if not self.is_sweep:
            return self.points[""].fingerprint
        return blake2b(" ".join(plan.fingerprint for plan in self.points.values()).encode(), digest_size=20).hexdigest()


def build_sweep(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    tokenizer_files: Mapping[str, Identity],
    vocabularies: Vocabularies | None = None,
    ids: Mapping[str, Any] | None = None,
) -> MergeSet:
    """The plan of a recipe with `sweep:`; the rest as for `build_plan`. Raises what that raises, and UsageError where two points
    cannot be made from the same reading."""
    inputs = (checkpoints, tokenizer_files, vocabularies, ids)
    points = {name: build_plan(point, *inputs) for name, point in recipe.points.items()}
    models = tuple(dict.fromkeys(url for plan in points.values() for url in plan.models))
    wide = {name: plan if plan.models == models else build_plan(plan.recipe, *inputs, models=models) for name, plan in points.items()}
    return MergeSet(recipe, points, recipe.swept_values, models, _readings(wide))


def _readings(wide: Mapping[str, MergePlan]) -> dict[str, tuple[Shard, ...]]:
    """Shards that differ in their calls alone. A tensor's place among the calls is the same in all of them, and so is
    what is read of it: all that any point needs."""
    first = next(iter(wide.values()))
    places_of_calls: dict[tuple[int, ...], int] = {}
    """Places among the calls of each point, to the place that stands for them."""
    readings: dict[str, list[Shard]] = {name: [] for name in wide}
    for number, shard in enumerate(first.shards):
        others = [plan.shards[number] for plan in wide.values()]
        if any((other.file, other.header) != (shard.file, shard.header) for other in others):
            raise UsageError("the points of a sweep do not have the same tensors: give each a recipe of its own")
        inputs = tuple(dict.fromkeys(file for other in others for file in other.inputs))
        places = [[inputs.index(file) for file in other.inputs] for other in others]
        tensors = []
        for of_points in zip(*(other.tensors for other in others), strict=True):
            tensor = of_points[0]
            if any((other.merged, other.rows) != (tensor.merged, tensor.rows) for other in of_points):
                raise UsageError(f"{tensor.name} has other rows in one point of the sweep than in another: give each a recipe of its own")
            widest = _widest([other.sources for other in of_points], places)
            call = places_of_calls.setdefault(tuple(other.call for other in of_points), len(places_of_calls))
            tensors.append(tensor._replace(call=call, sources=widest))
        for name in readings:
            readings[name].append(replace(shard, tensors=tuple(tensors), inputs=inputs))
    for position, (name, plan) in enumerate(wide.items()):
        calls = tuple(plan.calls[call[position]] for call in places_of_calls)
        readings[name] = [replace(shard, calls=calls) for shard in readings[name]]
    _require_alike(readings)
    return {name: tuple(shards) for name, shards in readings.items()}


def _widest(of_points: Sequence[tuple[Source | Stack | None, ...]], places: Sequence[Sequence[int]]) -> tuple[Source | Stack | None, ...]:
    """Where a tensor lies in every model that any point reads, its file by the place it has for all of them."""
    found: list[Source | Stack | None] = [None] * len(of_points[0])
    for sources, place in zip(of_points, places, strict=True):
        for model, source in enumerate(sources):
            if source is not None and found[model] is None:
                found[model] = source.with_files(place)
    return tuple(found)


def _require_alike(readings: Mapping[str, Sequence[Shard]]) -> None:
    """Sweeps over tensors come in the order of the tiles, so that there must be as many of them in every point."""
    looks: list[list[int]] = [[len(call.reductions) for call in shards[0].calls] for shards in readings.values()]
    if any(each != looks[0] for each in looks):
        raise UsageError("some points of the sweep look at tensors more often than others do: give each a recipe of its own")
