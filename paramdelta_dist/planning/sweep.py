"""Planning a sweep: the merges of all its points, and shards from which they are made in one reading of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint
from paramdelta_dist.errors import UsageError
from paramdelta_dist.planning.plan import MergePlan, Shard, Source, build_plan
from paramdelta_dist.planning.vocabulary import Vocabularies
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.storage import Identity


@dataclass(frozen=True)
class SweepPlan:
    """The merges of a sweep."""

    recipe: Recipe
    points: dict[str, MergePlan]
    """The plan of each point by its name: what a merge of it alone would do, and what is kept beside its output."""
    values: dict[str, dict[str, Any]]
    """What the sweep sets at each point."""
    models: tuple[str, ...]
    """URLs of the models that any point reads, the base first."""
    readings: dict[str, tuple[Shard, ...]]
    """The shards of each point as they are made: every point reads what any of them needs, in the same tiles."""

    @property
    def reading(self) -> MergePlan:
        """The merge of the first point, if it reads what any of them needs; with the fingerprint of the sweep."""
        name, first = next(iter(self.points.items()))
        shards = self.readings[name]
        settings = shards[0].settings if shards else first.settings
        return replace(first, models=self.models, shards=shards, settings=settings, fingerprint=self.fingerprint)

    @property
    def bytes_to_write(self) -> int:
        return sum(plan.bytes_to_write for plan in self.points.values())

    @property
    def fingerprint(self) -> str:
        """Of all that decides the bytes of any point."""
        return blake2b(" ".join(plan.fingerprint for plan in self.points.values()).encode(), digest_size=20).hexdigest()


def build_sweep(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    tokenizer_files: Mapping[str, Identity],
    vocabularies: Vocabularies | None = None,
    ids: Mapping[str, Any] | None = None,
) -> SweepPlan:
    """The plan of a recipe with `sweep:`; the rest as for `build_plan`. Raises what that raises, and UsageError where two points
    cannot be made from the same reading."""
    inputs = (checkpoints, tokenizer_files, vocabularies, ids)
    points = {name: build_plan(point, *inputs) for name, point in recipe.points.items()}
    models = tuple(dict.fromkeys(url for plan in points.values() for url in plan.models))
    wide = {name: plan if plan.models == models else build_plan(plan.recipe, *inputs, models=models) for name, plan in points.items()}
    return SweepPlan(recipe, points, recipe.swept_values, models, _readings(wide))


def _readings(wide: Mapping[str, MergePlan]) -> dict[str, tuple[Shard, ...]]:
    """Shards that differ in their settings alone. A tensor's place among the settings is the same in all of them, and so is
    what is read of it: all that any point needs."""
    first = next(iter(wide.values()))
    ways: dict[tuple[int, ...], int] = {}
    """Places in the settings of each point, to the place that stands for them."""
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
            way = ways.setdefault(tuple(other.settings for other in of_points), len(ways))
            tensors.append(tensor._replace(settings=way, sources=widest))
        for name in readings:
            readings[name].append(replace(shard, tensors=tuple(tensors), inputs=inputs))
    for position, (name, plan) in enumerate(wide.items()):
        settings = tuple(plan.settings[way[position]] for way in ways)
        readings[name] = [replace(shard, settings=settings) for shard in readings[name]]
    _require_alike(readings)
    return {name: tuple(shards) for name, shards in readings.items()}


def _widest(of_points: Sequence[tuple[Source | None, ...]], places: Sequence[Sequence[int]]) -> tuple[Source | None, ...]:
    """Where a tensor lies in every model that any point reads, its file by the place it has for all of them."""
    found: list[Source | None] = [None] * len(of_points[0])
    for sources, place in zip(of_points, places, strict=True):
        for model, source in enumerate(sources):
            if source is not None and found[model] is None:
                found[model] = source._replace(file=place[source.file])
    return tuple(found)


def _require_alike(readings: Mapping[str, Sequence[Shard]]) -> None:
    """Sweeps over tensors come in the order of the tiles, so that there must be as many of them in every point."""
    looks: list[list[int]] = [[len(way.sweeps) for way in shards[0].settings] for shards in readings.values()]
    if any(each != looks[0] for each in looks):
        raise UsageError("some points of the sweep look at tensors more often than others do: give each a recipe of its own")
