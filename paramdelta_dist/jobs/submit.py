"""Submitting: the job of a merge that runs already is joined; one that ended is followed by its next attempt."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramdelta_dist._version import __version__
from paramdelta_dist.errors import OutputOccupied
from paramdelta_dist.jobs import interpreter, version, working_dir
from paramdelta_dist.jobs.job import PYTHON, Cluster, Job, JobExists
from paramdelta_dist.jobs.job_id import JobName, parse_job_id, stem_of
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.redaction import redacted
from paramdelta_dist.sizes import format_memory
from paramdelta_dist.storage import redact

STOP_SECONDS = 30
"""Seconds that a driver which is stopped may take to end its workers and uploads; Ray itself would kill it after three."""
OVERWRITE, OPTIONS = "overwrite", "options"


@dataclass(frozen=True)
class Submission:
    """A merge, or another task about its output, that is to run as a job."""

    recipe: Recipe
    fingerprint: str | None
    """The plan's; None where none was made, so that nothing is known of the inputs."""
    options: tuple[str, ...] = ()
    """For the merge on the cluster."""
    overwrite: bool = False
    yes: bool = False
    """Whether overwriting may delete what no merge of ours has made."""
    begun: bool = False
    """Whether the output holds the beginning of this very merge."""
    ship: str = "image"
    python: str | None = None
    """The interpreter that has the package, on every node of the cluster; None for the one that Ray runs with."""
    task: tuple[str, ...] = working_dir.MERGE
    """The command to run, and what it is about."""
    target: str | None = None
    """The folder that it is about, where that is not the recipe's output."""

    @property
    def asked(self) -> dict[str, str]:
        """All that says how the job runs and what runs, as another submission may say it differently of the same merge."""
        storage = {redact(prefix): section.model_dump(exclude_unset=True) for prefix, section in self.recipe.storage.items()}
        given = {name: value or "yes" for name, _, value in (option.partition("=") for option in self.options)}
        given |= {"--overwrite": "yes"} if self.overwrite else {}
        given |= {"storage": json.dumps(storage, sort_keys=True)} if storage else {}
        given |= {"--python": self.python} if self.python else {}
        return given | {"--ship": self.ship, "version": __version__}

    @property
    def text(self) -> str:
        return working_dir.recipe_text(self.recipe)

    @property
    def stem(self) -> str:
        output = self.target or self.recipe.output
        location = self.recipe.storage_config.locations([output]).get(output, {})
        what = self.fingerprint or self.text
        return stem_of(what if self.task == working_dir.MERGE else "\n".join((*self.task, what)), output, location)


@dataclass(frozen=True)
class Submitted:
    name: JobName
    joined: bool
    """Whether the job ran already."""
    notes: tuple[str, ...] = ()


def submit(cluster: Cluster, submission: Submission) -> Submitted:
    """Raises OutputOccupied where a job that runs stands in the way."""
    last = last_attempt(cluster.jobs(), submission.stem)
    if last is not None and not last[1].over:
        return _join(cluster, *last, submission)
    name = JobName(submission.stem, last[0].attempt + 1 if last else 1)
    overwrite, notes = submission.overwrite, list[str]()
    if overwrite and submission.begun and last is not None and last[1].metadata.get(OVERWRITE) == "true":
        overwrite = False
        notes.append(f"goes on from {last[0]}, which has replaced the output's old content already")
    options = [*submission.options, *(["--overwrite", *(["--yes"] if submission.yes else [])] if overwrite else [])]
    python = submission.python or cluster.python()
    with tempfile.TemporaryDirectory(prefix="paramdelta-") as folder:
        working_dir.pack(Path(folder), submission.text, submission.ship)
        try:
            cluster.submit(
                str(name),
                working_dir.command(python, options, submission.task),
                folder=Path(folder),
                environment={
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
                    version.VARIABLE: __version__,
                    **({interpreter.VARIABLE: submission.python} if submission.python else {}),
                },
                metadata={**_metadata(submission, name), PYTHON: python},
            )
        except JobExists:  # somebody else submits the same at this moment
            return _join(cluster, name, cluster.job(str(name)), submission)
    return Submitted(name, joined=False, notes=tuple(notes))


def _join(cluster: Cluster, name: JobName, job: Job, submission: Submission) -> Submitted:
    """The job that runs. Raises OutputOccupied where it does not do what is asked for now: it would leave in place what is to be
    replaced."""
    stop = f"paramdelta-dist stop {name} --wait{cluster.hint}"
    if submission.overwrite and job.metadata.get(OVERWRITE) != "true":
        raise OutputOccupied(
            f"job {name} is making this output already, and not with --overwrite: leave the option out to join it, or stop it first "
            f"(`{stop}`) and submit again"
        )
    differing = _differing(job, submission.asked)
    if not differing:
        return Submitted(name, joined=True)
    note = f"job {name} runs with other options than these, and keeps them: {differing}. To change them, `{stop}` and submit again: "
    return Submitted(name, joined=True, notes=(f"{note}what is finished is kept",))


def _differing(job: Job, asked: Mapping[str, str]) -> str:
    """In what a job that runs was submitted differently, in words; empty where it was not, or where it does not say."""
    try:
        running = dict(json.loads(job.metadata[OPTIONS]))
    except (KeyError, TypeError, ValueError):
        return ""

    def told(name: str, given: Mapping[str, str]) -> str:
        value = str(given.get(name, "not given"))
        return format_memory(int(value)) if name == "--memory" and value.isdigit() else value

    names = [name for name in sorted({*running, *asked}) if running.get(name) != asked.get(name)]
    return ", ".join(f"{name} is {told(name, running)}, asked for is {told(name, asked)}" for name in names)


def last_attempt(jobs: Sequence[Job], stem: str) -> tuple[JobName, Job] | None:
    named = [(name, job) for job in jobs if (name := parse_job_id(job.id)) and name.stem == stem]
    return max(named, key=lambda pair: pair[0].attempt, default=None)


def _metadata(submission: Submission, name: JobName) -> Mapping[str, str]:
    """For people who look at the dashboard, and for the next submission. Everybody on the cluster can read it."""
    told = {
        "paramdelta-dist": __version__,
        "command": submission.task[0],
        "output": redact(submission.target or submission.recipe.output),
        "fingerprint": submission.fingerprint or "",
        "attempt": str(name.attempt),
        OVERWRITE: "true" if submission.overwrite else "false",
        OPTIONS: json.dumps(submission.asked),
    }
    return {name: redacted(value) for name, value in told.items()}
