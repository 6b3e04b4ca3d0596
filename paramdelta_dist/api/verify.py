"""Verifying a finished output: against its commit, byte by byte, or against its inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.driver.executors import Engine
from paramdelta_dist.driver.make_plan import plan
from paramdelta_dist.driver.observer import Details, NullObserver, Observer
from paramdelta_dist.driver.reduce_first import reduce_first
from paramdelta_dist.driver.workers import Allocation, Resources
from paramdelta_dist.engine.machine import available_cores
from paramdelta_dist.errors import InputChanged, UsageError
from paramdelta_dist.jobs.version import require_submitters_version
from paramdelta_dist.output.names import PLAN
from paramdelta_dist.output.sealed_json import read_document
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.planning.fingerprint import located
from paramdelta_dist.planning.memory import RESERVED, RESERVED_BY_RAY
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import StorageConfig, Store, normalize, open_store, redact

if TYPE_CHECKING:
    from paramdelta_dist.shards.verify_file import FileVerdict

BUFFERS = 64 << 20
"""Bytes a worker holds of a file whose digest it checks."""


def verify(
    url: str,
    *,
    deep: bool = False,
    recompute: float = 0.0,
    recipe: Recipe | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    seed: int | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Whether a finished output is what was committed: its structure and receipts; with `deep` every byte, by digest;
    with `recompute` that fraction of its tiles, computed from the inputs again.

    `recipe` gives the storage settings, and the inputs where the ones named in the output are reached by other URLs.
    Returns a document with `problems`, empty when all is well. Raises InputError where there is no finished output,
    InputChanged when the inputs are no longer those that were merged, IntegrityError when the commit itself was altered.
    """
    return verify_with(url, Resources(engine, workers), deep=deep, recompute=recompute, recipe=recipe, seed=seed, observer=observer)


def verify_with(
    url: str,
    resources: Resources,
    *,
    deep: bool = False,
    recompute: float = 0.0,
    recipe: Recipe | None = None,
    seed: int | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """`verify` with these resources."""
    from paramdelta_dist.shards.verify_file import (
        VerifyJob,
        check_file,
        check_structure,
        choose_tiles,
        find_edits,
        plan_checks,
        read_commit,
    )

    require_submitters_version()
    if not 0 <= recompute <= 1:
        raise UsageError(f"--recompute {recompute}: give the fraction of tiles to compute again, between 0 and 1")
    began, url, observer = time.monotonic(), normalize(url), observer or NullObserver()
    storage = recipe.storage_config if recipe else StorageConfig()
    store = open_store(url, storage)
    commit = read_commit(store)
    problems, checkpoint = check_structure(store, storage, url, commit)
    again = _plan_again(store, commit, recipe, resources) if recompute else None
    tiles = (
        {} if again is None else choose_tiles(again.plan.shards, tile_size=again.allocation.sizing.tile_size, fraction=recompute, seed=seed)
    )
    checks = plan_checks(store, commit, checkpoint, deep=deep, tiles=tiles)
    verdicts: list[FileVerdict] = []
    if checks:
        threads = min(resources.workers or available_cores(), len(checks))
        memory = BUFFERS + (RESERVED + RESERVED_BY_RAY if again is None else again.allocation.sizing.projected)
        with resources.opener(resources.engine, resources.workers, local_workers=threads, memory=memory) as executor:
            job = None
            if again is not None:
                job = again.allocation.context(again.plan)
                job = replace(job, statistics=reduce_first(store, again.plan, job, executor, observer, keep=False).statistics)
            total = sum(check.size for check in checks)
            observer.started("verifying", total, details=Details(files=len(checks)), counts=executor.counts)
            for verdict in executor.run(check_file, VerifyJob(url, storage, job), checks, advance=observer.advanced):
                verdicts.append(verdict)
                observer.finished(verdict)
    edits = find_edits(store, commit, verdicts)
    problems += [p for verdict in sorted(verdicts, key=lambda v: v.file) if verdict.file not in edits for p in verdict.problems]
    return {
        "output": redact(url),
        "ok": not problems,
        "problems": problems,
        "edited": edits,
        "fingerprint": commit["fingerprint"],
        "files": len(commit["files"]),
        "deep": deep,
        "tiles_recomputed": sum(verdict.tiles for verdict in verdicts),
        "bytes_read": sum(verdict.bytes_read for verdict in verdicts),
        "seconds": round(time.monotonic() - began, 3),
    }


@dataclass(frozen=True)
class _Again:
    """The merge that was committed, to be done again in part."""

    plan: MergePlan
    allocation: Allocation


def _plan_again(store: Store, commit: Mapping[str, Any], recipe: Recipe | None, resources: Resources) -> _Again:
    """Plan what was committed once more, whichever way its inputs are reached now. Raises InputChanged where that is another
    merge by now."""
    merge_plan, _ = plan(recipe or Recipe.model_validate(commit["recipe"]))
    known = commit["fingerprint"] in (merge_plan.fingerprint, merge_plan.unlocated)
    if not known and commit["fingerprint"] != located(merge_plan.unlocated, read_document(store, PLAN).get("locations", {})):
        raise InputChanged(
            f"{store.url}: its inputs, or the recipe given, are no longer those it was merged from; nothing can be recomputed"
        )
    return _Again(merge_plan, resources.allocation(merge_plan))
