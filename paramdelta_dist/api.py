"""The verbs: what `import paramdelta_dist` offers and what each command of the same name calls."""

from __future__ import annotations

import gc
import glob
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from paramdelta_dist import importing
from paramdelta_dist._version import __version__
from paramdelta_dist.checkpoint import Checkpoint, HomologyReport, compare, find_side_files, open_checkpoint
from paramdelta_dist.checkpoint.checkpoint import dtype_counts
from paramdelta_dist.checkpoint.components import locate
from paramdelta_dist.checkpoint.rules import Selection
from paramdelta_dist.checkpoint.tokenizer import Vocabulary, read_vocabulary, vocabulary_at
from paramdelta_dist.checkpoint.vocabulary import is_vocabulary_tensor
from paramdelta_dist.errors import (
    CredentialsError,
    InputChanged,
    InputError,
    IntegrityError,
    NotFound,
    OutputOccupied,
    OverBudget,
    StorageError,
    UsageError,
)
from paramdelta_dist.execution.machine import available_cores, cuda_available, default_memory, peak_memory
from paramdelta_dist.execution.output import claim, committed_meanwhile, look, output_status, require_shards
from paramdelta_dist.execution.series import Series, series_status
from paramdelta_dist.importing import Imported
from paramdelta_dist.jobs import connect, watching
from paramdelta_dist.jobs.naming import parse_job_id
from paramdelta_dist.jobs.parcel import check_ship
from paramdelta_dist.jobs.reading import Listener, Silent
from paramdelta_dist.jobs.submitting import Submission
from paramdelta_dist.jobs.submitting import submit as submit_job
from paramdelta_dist.jobs.version import require_submitters_version
from paramdelta_dist.methods import Method, all_methods, find_method, origin
from paramdelta_dist.planning import MergePlan, WorkerMemory, build_plan, plan_memory
from paramdelta_dist.planning.memory import RESERVED, RESERVED_BY_RAY, TENSOR_RECORD
from paramdelta_dist.planning.sweep import SweepPlan, build_sweep
from paramdelta_dist.planning.tiles import bytes_to_sweep, count_requests
from paramdelta_dist.planning.vocabulary import VOCABULARY_MODES, Vocabularies, vocabulary_outcomes
from paramdelta_dist.recipe import MAX_RECIPE, Recipe, of_deltas, parse_recipe, weights_of
from paramdelta_dist.storage import (
    Identity,
    StorageConfig,
    Store,
    find_leftovers,
    inside,
    normalize,
    open_store,
    part_size,
    redact,
    remove_leftover,
    scheme_of,
)
from paramdelta_dist.template import folder_of, is_template

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey
    from paramdelta_dist.execution.executor import Executor
    from paramdelta_dist.execution.making import Job
    from paramdelta_dist.execution.receipts import Receipt
    from paramdelta_dist.execution.statistics import Gathered
    from paramdelta_dist.execution.verify import FileVerdict
    from paramdelta_dist.execution.watching import Watcher

Engine = Literal["local", "ray"]
Device = Literal["auto", "cpu", "cuda"]
State = Literal["merged", "nothing to do"]

VERIFY_BUFFERS = 64 << 20
"""Bytes a worker holds of a file whose digest it checks."""

THREADS_A_SHARD = 2
"""Threads that make tiles of one shard while there are more shards: as many as keep the one that writes it busy."""
MOST_THREADS_A_SHARD = 4
"""More would wait for the one that writes."""
FEW_POINTS = 8
"""Points of a sweep that are named in a plan."""
TABLES = 48 << 20
"""Bytes that writing Parquet takes beside what is in the tables,"""
MEASURED_RECORD = 3 << 10
"""and what is known of one tensor and delta while they are made."""
RAY_WORKER_MEMORY = 2 << 30
"""Budget of a Ray worker when none is given: enough for eight deltas, little for a node."""


class Observer(Protocol):
    """Who wants to know how long work is going. Calls come from several threads."""

    def started(
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """Work of `total` bytes begins, of which `done` are in place already; `details` say more about it, and `counts` says
        at any time how many workers there are and how often something was tried again."""
        ...

    def advanced(self, size: int) -> None:
        """`size` more bytes are done; negative where a piece of work starts again."""
        ...

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None:
        """A file is done."""
        ...


class _Silent:
    def started(
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None: ...

    def advanced(self, size: int) -> None: ...

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """What a merge did."""

    output: str
    state: State
    """`nothing to do` when the same recipe over the same inputs was committed before, or by another run meanwhile."""
    fingerprint: str
    report: Mapping[str, Any]
    """Bytes, seconds, memory and retries of this run; empty when there was nothing to do."""
    pointer: str | None = None
    """The file that names the latest output, where the recipe's output is a template."""


def load_recipe(source: str) -> Recipe:
    """The recipe in a local file or at a URL. Raises RecipeError, or NotFound where there is none."""
    return parse_recipe(_read_text(source, "recipe"), where=redact(source))


def import_mergekit(source: str, *, output: str) -> Imported:
    """The recipe that a mergekit config in a local file or at a URL means, and in what the merge differs from mergekit's.

    Raises RecipeError listing all that cannot be mapped.
    """
    return importing.import_mergekit(_read_text(source, "mergekit config"), where=redact(source), output=output)


def _read_text(source: str, what: str) -> str:
    url = normalize(source)
    folder, _, name = url.rpartition("/")
    if not scheme_of(url) and Path(url).is_dir():
        raise UsageError(f"{source} is a folder; name the {what}'s YAML file")
    try:
        data = open_store(folder or "/", StorageConfig()).read(name, limit=MAX_RECIPE)
    except NotFound:
        raise UsageError(f"there is no {what} at {redact(source)}") from None
    except InputError as error:
        raise UsageError(str(error)) from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{redact(source)} is not a text file") from None


def inspect(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What a checkpoint holds, from its headers alone."""
    checkpoint = open_checkpoint(normalize(url), storage or StorageConfig())
    return {
        "url": redact(checkpoint.url),
        "architecture": checkpoint.architecture,
        "model_type": (checkpoint.config or {}).get("model_type"),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": dtype_counts(checkpoint),
        "tied_embeddings": checkpoint.tied_embeddings,
        "files": [
            {
                "name": file.name,
                "size": file.identity.size,
                "tag": file.identity.tag,
                "tensors": sum(tensor.file == position for tensor in checkpoint.tensors.values()),
            }
            for position, file in enumerate(checkpoint.files)
        ],
        "side_files": list(checkpoint.side_files),
        "orphans": list(checkpoint.orphans),
        "tensor_list": [
            {"name": name, "dtype": t.dtype, "shape": list(t.shape), "file": checkpoint.files[t.file].name}
            for name, t in checkpoint.tensors.items()
        ],
    }


def open_models(recipe: Recipe) -> dict[str, Checkpoint]:
    """Every model of a recipe, opened concurrently, by URL."""
    with ThreadPoolExecutor(max(1, len(recipe.models))) as pool:
        opened = pool.map(lambda url: open_checkpoint(url, recipe.storage_config), recipe.models)
        return dict(zip(recipe.models, opened, strict=True))


def check(recipe: Recipe, models: Mapping[str, Checkpoint] | None = None) -> HomologyReport:
    """Whether the models of a recipe fit together. Reads headers, configs and tokenizers."""
    opened = models or open_models(recipe)
    base, selection = opened[recipe.base], Selection(recipe.include, recipe.exclude)

    def left_out(name: str) -> bool:
        return not selection.has(name)

    def compared(vocab: str) -> HomologyReport:
        others = [opened[url] for url in recipe.models[1:]]
        return compare(base, others, recipe.storage_config, vocab=vocab, copied=left_out)

    if any(is_vocabulary_tensor(name) and left_out(name) for name in base.tensors):
        _require_the_bases_tokenizer(recipe, base)
    report = compared(recipe.vocab)
    if recipe.vocab == "strict" and not any(found.subject in ("tokenizer", "shapes") for found in report.mismatches):
        return report
    modes = [mode for mode in VOCABULARY_MODES if not (report if mode == recipe.vocab else compared(mode)).mismatches]
    return replace(report, vocabulary=vocabulary_outcomes(recipe, opened, _vocabularies(recipe, opened), modes))


def _require_the_bases_tokenizer(recipe: Recipe, base: Checkpoint) -> None:
    """Raise UsageError where rows of the base would be written with a tokenizer that gives their numbers to other tokens."""
    storage, source = recipe.storage_config, recipe.tokenizer_url
    if source == recipe.base:
        return
    ours, theirs = read_vocabulary(base, storage), vocabulary_at(source, find_side_files(source, storage), storage)
    if ours is None or theirs is None or ours.digest == theirs.digest or (ours.tokens and ours.tokens == theirs.tokens):
        return
    raise UsageError(
        f"embeddings or output head are left out and so the base's, but {redact(source)}, whose tokenizer is written, has other tokens "
        "than the base: set `tokenizer_from: base`"
    )


def _vocabularies(recipe: Recipe, models: Mapping[str, Checkpoint]) -> dict[str, Vocabulary | None]:
    """The vocabulary of each model, and of the folder whose tokenizer is written, by URL."""
    storage, source = recipe.storage_config, recipe.tokenizer_url
    found = {url: read_vocabulary(model, storage) for url, model in models.items()}
    if source not in found:
        found[source] = vocabulary_at(source, find_side_files(source, storage), storage)
    return found


def plan(recipe: Recipe) -> tuple[MergePlan, HomologyReport]:
    """The plan of a merge and what was noted on the way. Raises HomologyError when the models do not fit together.

    Of a sweep, it is that of the first point. Where the recipe's output is a template, the plan's recipe has the folder that
    it stands for: that of an earlier run of this very merge, else a new one.
    """
    if recipe.sweep:
        sweep, report = plan_sweep(recipe)
        more = "" if len(sweep.points) <= FEW_POINTS else ", …"
        names = ", ".join(list(sweep.points)[:FEW_POINTS]) + more
        note = f"a sweep of {len(sweep.points)} points ({names}), made from one reading; what is said here of writing is for each of them"
        return sweep.reading, replace(report, notes=(*report.notes, note))
    with _collector_paused():
        inputs, report = _open_inputs(recipe)
        made = build_plan(recipe, *inputs)
        series = _series(recipe)
        return (made if series is None else _into(made, series.output(series.find(made.fingerprint), made.fingerprint))), report


def _open_inputs(recipe: Recipe) -> tuple[tuple[dict[str, Checkpoint], Mapping[str, Identity], Vocabularies], HomologyReport]:
    """All that a plan is made from: the models, the side files of the folder that the tokenizer comes from, and where they are
    needed vocabularies. Raises HomologyError when the models do not fit together."""
    models = open_models(recipe)
    report = check(recipe, models)
    report.require()
    source = recipe.tokenizer_url
    files = models[source].side_files if source in models else find_side_files(source, recipe.storage_config)
    return (models, files, _vocabularies(recipe, models) if recipe.vocab == "by-token" else {}), report


def _series(recipe: Recipe) -> Series | None:
    return Series(recipe.output, recipe.storage_config) if is_template(recipe.output) else None


def _into(merge_plan: MergePlan, output: str) -> MergePlan:
    """The same merge into another folder: where it goes decides nothing of its bytes."""
    return replace(merge_plan, recipe=merge_plan.recipe.with_output(output))


def methods() -> list[dict[str, Any]]:
    """Every method there is, as plain values, ours first."""
    return [_card(each) for each in all_methods()]


def method(name: str) -> dict[str, Any]:
    """One method. Raises UsageError naming the nearest one when there is none of that name."""
    return _card(find_method(name))


def _card(card: Method) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "family": card.family,
        "formula": card.formula,
        "paper": card.paper,
        "scope": card.scope.value,
        "takes": card.takes,
        "parameters": [
            {"name": p.name, "meaning": p.meaning, "default": p.default, "range": p.range, "for_each": p.each} for p in card.parameters
        ],
        "notes": card.notes,
        "example": card.example.splitlines(),
        "package": origin(card),
    }


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Planning makes millions of small records, importing torch a million objects, and neither makes cycles: looking for
    them again and again takes longer than planning itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def plan_workers(
    merge_plan: MergePlan,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    points: int = 1,
    writes: bool = True,
    besides: int = 0,
) -> WorkerMemory:
    """How a merge (or, without `writes`, reading its inputs) would use this machine (local) or each worker (ray), within
    `memory` bytes of one process.

    Here, workers are threads: some make tiles of the same shard, so that a model of one file uses all of them. Those that
    were not asked for are reduced until they fit. `points` outputs are made at a time from the same reading, `besides` bytes
    are needed for something else. Raises OverBudget when they cannot.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least one is needed")
    recipe = merge_plan.recipe
    storage = recipe.storage_config
    budget = memory or (default_memory() if engine == "local" else RAY_WORKER_MEMORY)
    count = 1 if engine == "ray" else workers or available_cores()
    known = [
        len(shard.tensors) * len(merge_plan.models) * TENSOR_RECORD + sum(len(t.rows.table) for t in shard.tensors if t.rows)
        for shard in merge_plan.shards
    ]
    reserved = RESERVED + besides + (RESERVED_BY_RAY + max(known) if engine == "ray" else sum(known))
    while True:
        shards = min(-(-count // THREADS_A_SHARD), len(merge_plan.shards))
        try:
            return plan_memory(
                merge_plan,
                find_method(recipe.method),
                budget=budget,
                workers=shards,
                threads=min(max(1, count // shards // points), MOST_THREADS_A_SHARD),
                remote_inputs=any(open_store(url, storage).remote for url in merge_plan.models),
                remote_output=writes and open_store(recipe.output, storage).remote,
                reserved=reserved,
                points=points,
            )
        except OverBudget:
            if workers is not None or count == 1:
                raise
            count -= 1


def plan_document(merge_plan: MergePlan, memory: WorkerMemory, report: HomologyReport) -> dict[str, Any]:
    """A plan as plain values for people and programs: shards, traffic, requests, memory."""
    requests = sum(count_requests(shard, tile_size=memory.tile_size) for shard in merge_plan.shards)
    swept = sum(bytes_to_sweep(shard, tile_size=memory.tile_size) for shard in merge_plan.shards)
    remote = open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config).remote
    writes = sum(-(-shard.size // part_size(shard.size)) if remote else 1 for shard in merge_plan.shards)
    return {
        **merge_plan.as_document(),
        "bytes_to_read": merge_plan.bytes_to_read + swept,
        "bytes_of_inputs": merge_plan.bytes_to_read,
        "bytes_to_write": merge_plan.bytes_to_write,
        "requests": {"read": requests, "write": writes},
        "memory": asdict(memory),
        "notes": list(report.notes),
    }


def tensor_documents(merge_plan: MergePlan) -> list[dict[str, Any]]:
    """What each tensor of the output gets, as plain values: whether it is merged or copied, and the value of every parameter."""
    documents = []
    for shard in merge_plan.shards:
        for tensor in shard.tensors:
            place = locate(tensor.name)
            document: dict[str, Any] = {
                "name": tensor.name,
                "file": shard.file,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "component": place.component.value,
                "layer": place.layer,
                "merged": tensor.merged,
            }
            if tensor.rows is not None:
                document["row_runs"] = tensor.rows.count
            if tensor.merged:
                way = shard.settings[tensor.settings]
                own = {parameter.name for parameter in find_method(way.method).for_each}
                document["parameters"] = {name: value for name, value in way.parameters.items() if name not in own}
                document["terms"] = [{"model": redact(merge_plan.models[term.post]), **term.values} for term in way.terms]
            documents.append(document)
    return documents


def merge(
    recipe: Recipe,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    patience: float | None = None,
    report_page: bool = False,
    observer: Observer | None = None,
) -> MergeResult:
    """Make the output of a recipe, or go on where an earlier run of it stopped, or find it done.

    `memory` bounds, in bytes, this process (local) or each worker (ray). `patience` is how many seconds to wait while a
    cluster gives no worker at all; the default is a quarter of an hour, in which it can start machines. With `report_page` the
    deltas are measured on a sample as they are read, and a page about them and the run is written beside the receipts. Raises
    ParamDeltaErrors only; whatever is raised, the output is either untouched, unfinished and ready to go on, or complete.
    """
    began = time.monotonic()
    observer = observer or _Silent()
    require_submitters_version()
    if recipe.sweep:
        if report_page:
            raise UsageError("--report: a sweep has none of its own; `paramdelta-dist analyze` measures its deltas")
        return _merge_sweep(
            recipe, engine=engine, workers=workers, memory=memory, device=device, overwrite=overwrite, patience=patience, observer=observer
        )
    merge_plan, _ = plan(recipe)
    where = _device(device, engine)
    sizing = plan_workers(merge_plan, engine=engine, workers=workers, memory=memory, besides=_for_page(merge_plan) if report_page else 0)
    series = _series(recipe)
    if series is not None:
        day = series.begin(merge_plan.fingerprint, anew=overwrite)
        merge_plan = _into(merge_plan, series.output(day, merge_plan.fingerprint))
    recipe = merge_plan.recipe  # its output is a folder now, whatever it was

    def ended(state: State, report: Mapping[str, Any]) -> MergeResult:
        if series is not None:
            series.point(day, merge_plan.fingerprint)
        return MergeResult(redact(recipe.output), state, merge_plan.fingerprint, report, series.pointer_url if series else None)

    store = open_store(recipe.output, recipe.storage_config)
    held = claim(store, merge_plan, overwrite=overwrite)
    if held.committed is not None:
        return ended("nothing to do", {})
    with _collector_paused():  # what computes comes last: a mistake shows without waiting for torch
        from paramdelta_dist.execution.publish import publish
        from paramdelta_dist.execution.shard import ShardUnit, run_shard
        from paramdelta_dist.execution.statistics import Gathered

    receipts = dict(held.receipts)
    missing = [shard for shard in merge_plan.shards if shard.file not in receipts]
    job = _job(merge_plan, sizing, where)
    watcher = _watcher(merge_plan) if report_page else None
    made: list[Receipt] = []
    with _executor(engine if missing else "local", workers, sizing.workers, sizing.projected, job.device, patience) as executor:
        gathered = _gather(store, merge_plan, job, executor, observer) if missing else Gathered()
        job = replace(job, statistics=gathered.statistics, watcher=watcher)
        observer.started(
            "merging",
            merge_plan.bytes_to_write,
            done=sum(receipt.size for receipt in receipts.values()),
            details={"shards": len(merge_plan.shards), "bytes_to_read": merge_plan.bytes_to_read, "memory": asdict(sizing)},
            counts=executor.counts,
        )
        with closing(
            executor.run(run_shard, job, [ShardUnit.to_make(shard, job) for shard in missing], advance=observer.advanced)
        ) as results:
            for receipt in results:
                receipts[receipt.file] = receipt
                made.append(receipt)
                observer.finished(receipt)
                if committed_meanwhile(store, merge_plan.fingerprint):  # another run of this merge was faster; what it made stays as it is
                    return ended("nothing to do", {})
    seconds = time.monotonic() - began
    report = {
        **_effort(engine, executor, job, sizing, seconds, made, gathered, units=len(missing)),
        "shards": {"made": len(made), "kept": len(receipts) - len(made)},
        "bytes_read_again": executor.bytes_read_again + held.bytes_read,
        "tensors": {"merged": merge_plan.merged, "copied": merge_plan.copied},
        "nonfinite": sum(receipt.nonfinite for receipt in receipts.values()),
    }
    receipts = require_shards(store, receipts)
    if report_page:
        _publish_page(store, merge_plan, report)
    publish(store, merge_plan, receipts, report)
    return ended("merged", report)


def _for_page(merge_plan: MergePlan) -> int:
    """Bytes that figures of all tensors, and tables of them, take in this process."""
    return TABLES + sum(len(shard.tensors) for shard in merge_plan.shards) * len(merge_plan.terms) * MEASURED_RECORD


def _publish_page(store: Store, merge_plan: MergePlan, report: Mapping[str, Any]) -> None:
    """The report of a merge, from what its shards showed as they were made: a folder beside the receipts."""
    from paramdelta_dist.analysis.publish import publish
    from paramdelta_dist.analysis.statistics import Statistics, describe
    from paramdelta_dist.analysis.watching import EVERY, collected
    from paramdelta_dist.execution.receipts import FOLDER

    subject = describe(merge_plan)
    tensors, measured, lanes = collected(store, merge_plan, subject.vectors)
    into = open_store(f"{merge_plan.recipe.output}/{FOLDER}/report", merge_plan.recipe.storage_config)
    publish(into, Statistics(subject, tensors, measured), report, lanes=lanes, sampled=EVERY)


def _effort(
    engine: Engine,
    executor: Executor,
    job: Job,
    sizing: WorkerMemory,
    seconds: float,
    made: Sequence[Receipt],
    gathered: Gathered,
    *,
    units: int,
) -> dict[str, Any]:
    """What making `units` pieces of work took, for a report."""
    bytes_read = gathered.bytes_read + sum(receipt.bytes_read for receipt in made)
    bytes_written = sum(receipt.bytes_written for receipt in made)
    return {
        "engine": engine,
        "version": __version__,
        "device": job.device,
        "workers": min(executor.workers, max(1, units)) * job.threads,
        "nodes": executor.nodes,
        "bytes_read": bytes_read,
        "bytes_written": bytes_written,
        "requests": gathered.requests + sum(receipt.requests for receipt in made),
        "seconds": round(seconds, 3),
        "bytes_per_second": round((bytes_read + bytes_written) / max(seconds, 1e-9)),
        "peak_memory": max([receipt.peak_memory for receipt in made] + [peak_memory() if engine == "local" else 0]),
        "projected_memory": sizing.projected,
        "retries": executor.retries,
        "copies": executor.copies,
        "restarts": executor.restarts,
        "retry_causes": dict(executor.causes),
        "workers_lost": executor.lost,
    }


def plan_sweep(recipe: Recipe) -> tuple[SweepPlan, HomologyReport]:
    """The plan of a recipe with `sweep:`; raises what `plan` does, and UsageError where the points cannot share one reading."""
    with _collector_paused():
        inputs, report = _open_inputs(recipe)
        return build_sweep(recipe, *inputs), report


def _merge_sweep(
    recipe: Recipe,
    *,
    engine: Engine,
    workers: int | None,
    memory: int | None,
    device: Device,
    overwrite: bool,
    patience: float | None,
    observer: Observer,
) -> MergeResult:
    """All points of a sweep, each as a merge of it alone would be, from one reading of the inputs."""
    began = time.monotonic()
    sweep, _ = plan_sweep(recipe)
    where = _device(device, engine)
    sizing = plan_workers(sweep.reading, engine=engine, workers=workers, memory=memory, points=len(sweep.points))
    stores = {name: open_store(each.recipe.output, recipe.storage_config) for name, each in sweep.points.items()}
    with ThreadPoolExecutor(len(stores)) as pool:
        claims = dict(zip(stores, pool.map(lambda name: claim(stores[name], sweep.points[name], overwrite=overwrite), stores), strict=True))
    with _collector_paused():
        from paramdelta_dist.execution.publish import publish
        from paramdelta_dist.execution.statistics import Gathered
        from paramdelta_dist.execution.sweeping import SweepJob, run_sweep_shard, sweep_units, write_sweep

    open_points = {name: dict(held.receipts) for name, held in claims.items() if held.committed is None}
    units = sweep_units(sweep, open_points, tile_size=sizing.tile_size)
    jobs = {name: replace(_job(sweep.points[name], sizing, where), models=sweep.models) for name in open_points}
    made: dict[str, list[Receipt]] = {name: [] for name in open_points}
    every: list[Receipt] = []
    total = Gathered()
    with _executor(engine if units else "local", workers, sizing.workers, sizing.projected, where, patience) as executor:
        for name in {name for unit in units for name in unit.shards}:
            gathered = _gather(stores[name], sweep.points[name], jobs[name], executor, observer)
            jobs[name] = replace(jobs[name], statistics=gathered.statistics)
            total = Gathered((), total.bytes_read + gathered.bytes_read, total.requests + gathered.requests)
        observer.started(
            "merging",
            sum(sweep.points[name].bytes_to_write for name in open_points),
            done=sum(receipt.size for receipts in open_points.values() for receipt in receipts.values()),
            details={"shards": len(sweep.reading.shards), "bytes_to_read": sweep.reading.bytes_to_read, "memory": asdict(sizing)},
        )
        with closing(executor.run(run_sweep_shard, SweepJob(jobs), units, advance=observer.advanced)) as results:
            for receipts in results:
                for name, receipt in receipts.items():
                    open_points[name][receipt.file] = receipt
                    made[name].append(receipt)
                    every.append(receipt)
                    observer.finished(receipt)
    seconds = time.monotonic() - began
    job = next(iter(jobs.values()), _job(sweep.reading, sizing, where))
    effort = _effort(engine, executor, job, sizing, seconds, every, total, units=len(units))
    points: list[dict[str, Any]] = []
    for name, merge_plan in sweep.points.items():
        state: State = "nothing to do"
        if name in open_points:
            state, receipts = "merged", open_points[name]
            own = {
                "shards": {"made": len(made[name]), "kept": len(receipts) - len(made[name])},
                "bytes_read_again": executor.bytes_read_again + claims[name].bytes_read,
                "tensors": {"merged": merge_plan.merged, "copied": merge_plan.copied},
                "nonfinite": sum(receipt.nonfinite for receipt in receipts.values()),
            }
            publish(stores[name], merge_plan, require_shards(stores[name], receipts), {**effort, **own, "points": len(sweep.points)})
        output = redact(merge_plan.recipe.output)
        points.append({"name": name, "output": output, "fingerprint": merge_plan.fingerprint, "values": sweep.values[name], "state": state})
    write_sweep(open_store(recipe.output, recipe.storage_config), sweep.fingerprint, points)
    report = {
        **effort,
        "shards": {"made": len(every), "kept": sum(map(len, open_points.values())) - len(every)},
        "bytes_read_again": executor.bytes_read_again + sum(held.bytes_read for held in claims.values()),
        "tensors": {"merged": sweep.reading.merged, "copied": sweep.reading.copied},
        "nonfinite": sum(receipt.nonfinite for receipts in open_points.values() for receipt in receipts.values()),
    }
    state = "merged" if open_points else "nothing to do"
    return MergeResult(redact(recipe.output), state, sweep.fingerprint, {**(report if open_points else {}), "points": points})


def submit(
    recipe: Recipe,
    *,
    address: str | None = None,
    ship: str = "image",
    check: bool = True,
    wait: bool = True,
    workers: int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    patience: float | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a merge as a job on a Ray cluster, and with `wait` follow it to its end.

    The same merge into the same output is the same job: one that runs is joined, one that failed or was stopped is followed
    by its next attempt, and what is done already is not submitted. With `check` the plan is made here first, unless the
    inputs cannot be reached from here. `memory` is the budget of each worker, in bytes; `patience` as in `merge`, `ship` as in
    `parcel.pack`.

    Returns a document with `state` (`nothing to do`, `pending`, `running`, `succeeded`, `failed`, `stopped`), `job`, its
    `exit_code` when it is over, and the merge's `result` or the `error`. Raises what a wrong recipe or plan raises,
    EngineError when the cluster cannot be reached or is lost, Interrupted on Ctrl-C, which leaves the job running.
    """
    listener = listener or Silent()
    check_ship(ship)
    fingerprint, begun = None, False
    if check:
        try:
            merge_plan, _ = plan(recipe)
            plan_workers(merge_plan, engine="ray", workers=workers, memory=memory, points=max(1, len(recipe.points)))
            fingerprint, begun = merge_plan.fingerprint, False
            found = "free" if recipe.sweep else _look(merge_plan, overwrite)
            if found == "finished" and not overwrite:
                if (series := _series(recipe)) is not None:
                    series.point(series.find(fingerprint), fingerprint)
                output = redact(merge_plan.recipe.output)
                return {"state": "nothing to do", "job": None, "exit_code": 0, "output": output, "fingerprint": fingerprint}
            begun = found == "begun"
        except (CredentialsError, StorageError) as error:
            listener.note(f"not everything can be checked from here, so the cluster will: {error}")
    options = [f"--workers={workers}"] if workers else []
    options += [f"--memory={memory}"] if memory else []
    options += [f"--device={device}"] if device != "auto" else []
    options += [f"--patience={max(1, round(patience))}s"] if patience else []
    cluster = connect(address)
    local = [url for url in (*recipe.models, recipe.output) if not scheme_of(url)]
    if local:
        listener.note(f"{local[0]} is a local path: every node of the cluster must see the same files there")
    made = submit_job(cluster, Submission(recipe, fingerprint, tuple(options), overwrite=overwrite, begun=begun, ship=ship))
    for note in made.notes:
        listener.note(note)
    listener.note(f"job {made.name} {'runs already' if made.joined else 'submitted'} on {redact(cluster.url)}")
    document = watching.watch(cluster, str(made.name), listener) if wait else watching.look(cluster, str(made.name))
    return {**document, "joined": made.joined, "fingerprint": fingerprint}


def _look(merge_plan: MergePlan, overwrite: bool) -> str:
    store = open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config)
    try:
        return look(store, merge_plan)
    except (OutputOccupied, IntegrityError):
        if overwrite:
            return "free"
        raise


def list_jobs(address: str | None = None) -> list[dict[str, Any]]:
    """The merges that were submitted to a cluster, the latest first."""
    return sorted(
        (watching.describe(job) for job in connect(address).jobs() if parse_job_id(job.id)), key=lambda job: job["began"] or 0, reverse=True
    )


def logs(job_id: str, *, address: str | None = None) -> str:
    """What a job has written so far. Raises NotFound where the cluster knows no such job."""
    return connect(address).log(_job_id(job_id))


def follow(job_id: str, *, address: str | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """Follow a job to its end; returns and raises what `submit` does."""
    return watching.watch(connect(address), _job_id(job_id), listener or Silent())


def stop(job_id: str, *, wait: bool = False, address: str | None = None) -> dict[str, Any]:
    """Stop a job, which leaves what is finished for the next attempt; with `wait` return when it has ended."""
    return watching.stop(connect(address), _job_id(job_id), wait=wait)


def job_status(job_id: str, *, address: str | None = None) -> dict[str, Any]:
    """How far a job has come, or how it ended: bytes, shards, rate, workers, retries, seconds left."""
    return watching.look(connect(address), _job_id(job_id))


def _job_id(text: str) -> str:
    if parse_job_id(text) is None:
        raise UsageError(f"{text!r} is not the id of a job of ours, such as pdd-0123456789ab-1; `paramdelta-dist jobs` lists them")
    return text


def status(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What is in an output folder, and how far a merge into it has come; of a template, or the folder where its outputs
    lie, which of them is the latest and which are unfinished."""
    url = normalize(url)
    store = open_store(folder_of(url) if is_template(url) else url, storage or StorageConfig())
    found = output_status(store)
    return (series_status(store) if found["state"] == "foreign" else None) or found


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
    from paramdelta_dist.execution.verify import VerifyJob, check_file, check_structure, choose_tiles, plan_checks, read_commit

    if not 0 <= recompute <= 1:
        raise UsageError(f"--recompute {recompute}: give the fraction of tiles to compute again, between 0 and 1")
    began, url, observer = time.monotonic(), normalize(url), observer or _Silent()
    storage = recipe.storage_config if recipe else StorageConfig()
    store = open_store(url, storage)
    commit = read_commit(store)
    problems, checkpoint = check_structure(store, storage, url, commit)
    tiles, job, memory = {}, None, RESERVED + RESERVED_BY_RAY + VERIFY_BUFFERS
    if recompute:
        merge_plan, _ = plan(recipe or Recipe.model_validate(commit["recipe"]))
        if merge_plan.fingerprint != commit["fingerprint"]:
            raise InputChanged(
                f"{redact(url)}: its inputs, or the recipe given, are no longer those it was merged from; nothing can be recomputed"
            )
        sizing = plan_workers(merge_plan, engine=engine, workers=workers)
        job, memory = _job(merge_plan, sizing, "cpu"), sizing.projected + VERIFY_BUFFERS
        tiles = choose_tiles(merge_plan.shards, tile_size=sizing.tile_size, fraction=recompute, seed=seed)
    checks = plan_checks(store, commit, checkpoint, deep=deep, tiles=tiles)
    verdicts: list[FileVerdict] = []
    if checks:
        threads = min(workers or available_cores(), len(checks))
        with _executor(engine, workers, threads, memory, "cpu") as executor:
            if job is not None:
                gathered = _gather(store, merge_plan, job, executor, observer, keep=False)
                job = replace(job, statistics=gathered.statistics)
            observer.started("verifying", sum(check.size for check in checks), details={"files": len(checks)})
            for verdict in executor.run(check_file, VerifyJob(url, storage, job), checks, advance=observer.advanced):
                verdicts.append(verdict)
                observer.finished(verdict)
    problems += [problem for verdict in sorted(verdicts, key=lambda v: v.file) for problem in verdict.problems]
    return {
        "output": redact(url),
        "ok": not problems,
        "problems": problems,
        "fingerprint": commit["fingerprint"],
        "files": len(commit["files"]),
        "deep": deep,
        "tiles_recomputed": sum(verdict.tiles for verdict in verdicts),
        "bytes_read": sum(verdict.bytes_read for verdict in verdicts),
        "seconds": round(time.monotonic() - began, 3),
    }


def _comparable(recipe: Recipe) -> Recipe:
    """The recipe that reads all deltas whole, without embeddings and heads whose rows need not belong to the same tokens."""
    selection, base = Selection(recipe.include, recipe.exclude), open_checkpoint(recipe.base, recipe.storage_config)
    rowed = [name for name in base.tensors if is_vocabulary_tensor(name) and (recipe.vocab != "strict" or not selection.has(name))]
    return of_deltas(recipe).model_copy(update={"exclude": tuple(map(glob.escape, rowed))})


def analyze(
    recipe: Recipe,
    output: str | None = None,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """What the deltas of a recipe are, from one reading of its inputs: tables and a page, written to the folder `output`.

    `output` is by default the folder `analysis` of this directory. `memory` bounds, in bytes, this process (local) or each
    worker (ray). Returns a document of the most important figures. Raises ParamDeltaErrors only,
    such as HomologyError where the models do not fit together; nothing is written then.
    """
    began, observer = time.monotonic(), observer or _Silent()
    folder = normalize(output or "analysis")
    if not is_template(recipe.output) and inside(folder, recipe.output):
        raise UsageError(f"--output {redact(folder)} is in the recipe's output, which a merge must find empty; choose another folder")
    store = open_store(folder, recipe.storage_config)
    merge_plan, _ = plan(_comparable(recipe))
    sizing = plan_workers(merge_plan, engine=engine, workers=workers, memory=memory, writes=False, besides=_for_page(merge_plan))
    with _collector_paused():
        from paramdelta_dist.analysis.publish import publish
        from paramdelta_dist.analysis.statistics import Statistics, describe
        from paramdelta_dist.analysis.survey import SurveyJob, SurveyUnit, joined, survey_shard

    subject = describe(merge_plan, weights_of(recipe))
    units = [SurveyUnit(shard) for shard in merge_plan.shards]
    job = SurveyJob(
        merge_plan.models, subject.vectors, recipe.storage_config, sizing.tile_size, sizing.tiles_in_flight, threads=sizing.threads
    )
    surveys: dict[str, ShardSurvey] = {}
    with _executor(engine, workers, sizing.workers, sizing.projected, "cpu") as executor:
        observer.started(
            "analyzing",
            sum(unit.size for unit in units),
            details={"shards": len(units), "memory": asdict(sizing)},
        )
        with closing(executor.run(survey_shard, job, units, advance=observer.advanced)) as results:
            for survey in results:
                surveys[survey.file] = survey
                observer.finished(survey)
    statistics = Statistics(subject, *joined(merge_plan, subject.vectors, surveys))
    seconds = time.monotonic() - began
    run = {
        "engine": engine,
        "version": __version__,
        "workers": min(executor.workers, len(units)) * sizing.threads,
        "bytes_read": sum(survey.bytes_read for survey in surveys.values()),
        "requests": sum(survey.requests for survey in surveys.values()),
        "seconds": round(seconds, 3),
        "peak_memory": max(survey.peak_memory for survey in surveys.values()),
        "projected_memory": sizing.projected,
        "retries": executor.retries,
    }
    return publish(store, statistics, run)


def clean(url: str, *, older_than: float = 86400.0, remove: bool = False, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What killed processes left unfinished below a folder, begun at least `older_than` seconds ago; with `remove` it is removed.

    A merge that runs at the moment looks the same as one that was killed: its age tells them apart.
    """
    url, storage = normalize(url), storage or StorageConfig()
    found = [leftover for leftover in find_leftovers(url, storage) if leftover.age_seconds >= older_than]
    for leftover in found if remove else ():
        remove_leftover(url, storage, leftover)
    return {"output": redact(url), "removed": remove, "leftovers": [asdict(leftover) for leftover in found]}


def _device(device: Device, engine: Engine) -> str:
    """Where a worker computes. `auto` is the CPU: streaming is bound by storage, and a GPU must be asked for."""
    if device == "cuda" and engine == "local" and not cuda_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; leave the option out to compute on the CPU")
    return "cuda" if device == "cuda" else "cpu"


def _watcher(merge_plan: MergePlan) -> Watcher:
    """Who measures the deltas of a merge as it runs."""
    from paramdelta_dist.analysis.statistics import describe
    from paramdelta_dist.analysis.watching import DeltaWatcher

    return DeltaWatcher(describe(merge_plan).vectors, merge_plan.fingerprint)


def _job(merge_plan: MergePlan, sizing: WorkerMemory, device: str) -> Job:
    from paramdelta_dist.execution.making import Job

    recipe = merge_plan.recipe
    return Job(
        models=merge_plan.models,
        output=recipe.output,
        storage=recipe.storage_config,
        fingerprint=merge_plan.fingerprint,
        allow_nonfinite=recipe.allow_nonfinite,
        tile_size=sizing.tile_size,
        tiles_in_flight=sizing.tiles_in_flight,
        threads=sizing.threads,
        device=device,
    )


def _gather(store: Store, merge_plan: MergePlan, job: Job, executor: Executor, observer: Observer, *, keep: bool = True) -> Gathered:
    """What the method has to know of the whole model before the first tensor is made."""
    from paramdelta_dist.execution.statistics import gather

    def started(number: int, size: int) -> None:
        observer.started(f"looking at the model, sweep {number + 1}", size, details={"shards": len(merge_plan.shards)})

    return gather(store, merge_plan, job, executor, started=started, advance=observer.advanced, keep=keep)


@contextmanager
def _executor(
    engine: Engine, workers: int | None, threads: int, memory: int, device: str, patience: float | None = None
) -> Iterator[Executor]:
    """`threads` workers here, or `workers` (None: as many as the cluster gives) of `memory` bytes on Ray."""
    if engine == "local":
        from paramdelta_dist.execution.local import LocalExecutor

        yield LocalExecutor(threads)
        return
    from paramdelta_dist.execution.ray import RayExecutor

    executor = RayExecutor(workers, memory=memory, gpus=1 if device == "cuda" else 0, patience=patience)
    try:
        yield executor
    finally:
        executor.close()
