"""Merges as jobs on a cluster: submitted, listed, followed, stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paramdelta_dist.driver.consent import Confirm, replacements
from paramdelta_dist.driver.executors import Device
from paramdelta_dist.driver.make_plan import plan, plan_sweep, series_of
from paramdelta_dist.driver.sizing import NO_PAGE, page_memory, sweep_page_memory
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import CredentialsError, EngineError, IntegrityError, OutputOccupied, StorageError, UsageError
from paramdelta_dist.jobs import connect
from paramdelta_dist.jobs import status as job_reports
from paramdelta_dist.jobs.job import Cluster
from paramdelta_dist.jobs.job_id import JobName, parse_job_id
from paramdelta_dist.jobs.log_reader import Listener, Silent
from paramdelta_dist.jobs.submit import Submission, last_attempt
from paramdelta_dist.jobs.submit import submit as submit_job
from paramdelta_dist.jobs.working_dir import RECIPE_FILE, check_ship
from paramdelta_dist.output.claim import output_state
from paramdelta_dist.output.mend import lost_files
from paramdelta_dist.output.sweep_index import is_written_down
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import normalize, open_store, redact, scheme_of
from paramdelta_dist.threads import Threads


@dataclass(frozen=True)
class Task:
    """What to submit that is no merge."""

    command: Literal["verify", "analyze"]
    output: str | None = None
    """The folder to verify, the recipe's output unless given, or the one that the analysis is written to."""
    options: tuple[str, ...] = ()

    def line(self, recipe: Recipe) -> tuple[tuple[str, ...], str]:
        """The command, and the folder that it is about. Raises UsageError where it is not known."""
        if self.command == "analyze":
            if self.output is None or not scheme_of(self.output):
                raise UsageError("--do analyze: name with --output URL where the cluster writes the analysis, such as s3://bucket/analysis")
            return ("analyze", RECIPE_FILE, f"--output={self.output}", *self.options), self.output
        if self.output is None and (recipe.sweep or series_of(recipe) is not None):
            raise UsageError("--do verify: this recipe has several outputs; name the one to verify with --output URL")
        output = normalize(self.output or recipe.output)
        return ("verify", output, f"--recipe={RECIPE_FILE}", *self.options), output


def submit(
    recipe: Recipe,
    *,
    address: str | None = None,
    ship: str = "image",
    python: str | None = None,
    task: Task | None = None,
    check: bool = True,
    wait: bool = True,
    workers: int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    yes: bool = False,
    confirm: Confirm | None = None,
    patience: float | None = None,
    report_page: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a merge as a job on a Ray cluster, and with `wait` follow it to its end.

    The same merge into the same output is the same job: one that runs is joined, one that failed or was stopped is followed
    by its next attempt, and what is done already is not submitted. A job that runs keeps its options, which is noted where they are
    others, and refused where it would not `overwrite`. With `check` the plan is made here first, unless the
    inputs cannot be reached from here. `memory` is the budget of each worker, in bytes; `patience` and `report_page` as in `merge`, `ship`
    as in `working_dir.pack`; `python` is the cluster's interpreter that has the package, if that is not Ray's own; a `task` is done in
    place of the merge. What `overwrite` would delete that is not ours is asked of `confirm` here, where the plan can be made here,
    and allowed to the job then; `yes` allows it unasked.

    Returns a document with `state` (`nothing to do`, `pending`, `running`, `succeeded`, `failed`, `stopped`), `job`, its
    `exit_code` when it is over, and the merge's `result` or the `error`. Without `wait` there is always a `job`: where nothing is
    to do, the last one that made the output, or an id of attempt 0, of which `job_status` and the others say so. Raises what a
    wrong recipe or plan raises, OutputOccupied where a job that runs stands in the way, EngineError when the cluster cannot be
    reached or is lost, Interrupted on Ctrl-C, which leaves the job running.
    """
    listener, resources = listener or Silent(), Resources("ray", workers, memory, device, patience)
    check_ship(ship)
    if task is not None:
        line, target = task.line(recipe)
        wanted = Submission(recipe, None, _options(resources), ship=ship, python=python, task=line, target=target)
        return {**_submitted(connect(address, listener.note), wanted, wait, listener), "fingerprint": None}
    seen = _preflight(recipe, resources, overwrite, (lambda _: True) if yes else confirm, report_page, listener) if check else _Seen()
    if seen.state == "finished":
        job = None if wait else _made_by(address, Submission(recipe, seen.fingerprint).stem, listener)
        return {"state": "nothing to do", "job": job, "exit_code": 0, "output": seen.output, "fingerprint": seen.fingerprint}
    wanted = Submission(
        recipe,
        seen.fingerprint,
        (*_options(resources), *(["--report"] if report_page else [])),
        overwrite=overwrite,
        yes=yes or seen.agreed,
        begun=seen.state == "begun",
        ship=ship,
        python=python,
    )
    return {**_submitted(connect(address, listener.note), wanted, wait, listener), "fingerprint": seen.fingerprint}


def _submitted(cluster: Cluster, wanted: Submission, wait: bool, listener: Listener) -> dict[str, Any]:
    local = [url for url in (*wanted.recipe.models, wanted.target or wanted.recipe.output) if not scheme_of(url)]
    if local:
        listener.note(f"{local[0]} is a local path: every node of the cluster must see the same files there")
    made = submit_job(cluster, wanted)
    for note in made.notes:
        listener.note(note)
    listener.note(f"job {made.name} {'runs already' if made.joined else 'submitted'} on {redact(cluster.url)}")
    document = job_reports.watch(cluster, str(made.name), listener) if wait else job_reports.job_state(cluster, str(made.name))
    return {**document, "joined": made.joined, "notes": list(made.notes)}


def _made_by(address: str | None, stem: str, listener: Listener) -> str:
    """The id of the last job of a merge that is done; where its cluster knows none, or does not answer, the one that stands for none."""
    try:
        last = last_attempt(connect(address, listener.note).jobs(), stem)
    except (EngineError, CredentialsError) as error:
        listener.note(f"which job made it cannot be asked: {error}")
        last = None
    return str(JobName(stem, 0) if last is None else last[0])


def list_jobs(address: str | None = None, *, listener: Listener | None = None) -> list[dict[str, Any]]:
    """The merges that were submitted to a cluster, the latest first."""
    found = [job_reports.describe(job) for job in _connect(address, listener).jobs() if parse_job_id(job.id)]
    return sorted(found, key=lambda job: job["began"] or 0, reverse=True)


def logs(job_id: str, *, address: str | None = None, listener: Listener | None = None) -> str:
    """What a job has written so far. Raises NotFound where the cluster knows no such job."""
    return "" if _stands_for_none(job_id) else _connect(address, listener).log(job_id)


def follow(job_id: str, *, address: str | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """Follow a job to its end; returns and raises what `submit` does."""
    return _nothing(job_id) if _stands_for_none(job_id) else job_reports.watch(_connect(address, listener), job_id, listener or Silent())


def stop(job_id: str, *, wait: bool = False, address: str | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """Stop a job, which leaves what is finished for the next attempt; with `wait` return when it has ended."""
    if _stands_for_none(job_id):
        return {**_nothing(job_id), "told_to_stop": False}
    return job_reports.stop(_connect(address, listener), job_id, wait=wait)


def job_status(job_id: str, *, address: str | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """How far a job has come, or how it ended: bytes, shards, rate, workers, retries, seconds left."""
    return _nothing(job_id) if _stands_for_none(job_id) else job_reports.job_state(_connect(address, listener), job_id)


def _connect(address: str | None, listener: Listener | None) -> Cluster:
    return connect(address, (listener or Silent()).note)


def _stands_for_none(job_id: str) -> bool:
    """Whether `submit` gave this id where there was nothing to do. Raises UsageError for what is no id of ours."""
    name = parse_job_id(job_id)
    if name is None:
        raise UsageError(f"{job_id!r} is not the id of a job of ours, such as pdd-0123456789ab-1; `paramdelta-dist jobs` lists them")
    return name.attempt == 0


def _nothing(job_id: str) -> dict[str, Any]:
    return {"job": job_id, "state": "nothing to do", "attempt": 0, "output": None, "began": None, "seconds": None, "exit_code": 0}


@dataclass(frozen=True)
class _Seen:
    """What can be known of a merge before it is submitted."""

    fingerprint: str | None = None
    """None where the plan could not be made from here."""
    state: Literal["free", "begun", "finished"] = "free"
    """Of the output."""
    output: str | None = None
    """The folder, where the merge is finished."""
    agreed: bool = False
    """Whether what overwriting would delete that is not ours may go."""


def _preflight(
    recipe: Recipe, resources: Resources, overwrite: bool, confirm: Confirm | None, report_page: bool, listener: Listener
) -> _Seen:
    """Plan here what the job will plan there, so that a mistake shows at once; and find out whether there is anything to do."""
    seen = _Seen()
    try:
        if recipe.sweep:
            sweep, _ = plan_sweep(recipe)
            resources.allocation(
                sweep.reading, points=len(sweep.points), page=sweep_page_memory(sweep, resources.engine) if report_page else NO_PAGE
            )
            seen = _Seen(sweep.fingerprint, agreed=overwrite and _agreed(list(sweep.points.values()), confirm))
            return replace(seen, state=_look_at_points(sweep, overwrite), output=redact(recipe.output))
        merge_plan, _ = plan(recipe)
        resources.allocation(merge_plan, page=page_memory(merge_plan) if report_page else NO_PAGE)
        seen = _Seen(merge_plan.fingerprint)
        seen = replace(seen, agreed=overwrite and _agreed([merge_plan], confirm))
        series = series_of(recipe)
        state = "begun" if series is not None and not overwrite and _lost_files(merge_plan) else _look(merge_plan, overwrite)
        if state == "finished" and series is not None:
            series.point_to(series.find(merge_plan.fingerprint), merge_plan.fingerprint)
        return replace(seen, state=state, output=redact(merge_plan.recipe.output))
    except (CredentialsError, StorageError) as error:
        listener.note(f"not everything can be checked from here, so the cluster will: {error}")
        return seen


def _agreed(plans: Sequence[MergePlan], confirm: Confirm | None) -> bool:
    """Whether overwriting deletes something that is not ours; then the caller has agreed. Raises OutputOccupied otherwise."""
    return any(replacement.foreign for replacement in replacements(plans, confirm))


def _look_at_points(sweep: MergeSet, overwrite: bool) -> Literal["free", "begun", "finished"]:
    """What is in the outputs of a sweep: it is finished when all of them are, and the folder says so."""
    with Threads(len(sweep.points)) as pool:
        states = set(pool.map(lambda point: _look(point, overwrite), sweep.points.values()))
    if states == {"free"}:
        return "free"
    written = is_written_down(open_store(sweep.recipe.output, sweep.recipe.storage_config), sweep.fingerprint)
    return "finished" if states == {"finished"} and written else "begun"


def _look(merge_plan: MergePlan, overwrite: bool) -> Literal["free", "begun", "finished"]:
    """What is in the output of this very merge that is not going to be overwritten."""
    store = open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config)
    try:
        state = output_state(store, merge_plan)
    except (OutputOccupied, IntegrityError):
        if overwrite:
            return "free"
        raise
    return "free" if state == "finished" and overwrite else state


def _lost_files(merge_plan: MergePlan) -> list[str]:
    """What a finished output of this very merge lost, which the job will make again."""
    return lost_files(open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config), merge_plan)


def _options(resources: Resources) -> tuple[str, ...]:
    """The options of `merge` that say the same."""
    options = [f"--workers={resources.workers}"] if resources.workers else []
    options += [f"--memory={resources.memory}"] if resources.memory else []
    options += [f"--device={resources.device}"] if resources.device != "auto" else []
    options += [f"--patience={max(1, round(resources.patience))}s"] if resources.patience else []
    return tuple(options)
