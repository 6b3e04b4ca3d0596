"""Submitting: the job of a merge that runs already is joined; one that ended is followed by its next attempt."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramdelta_dist._version import __version__
from paramdelta_dist.jobs import parcel, version
from paramdelta_dist.jobs.job import Cluster, Job, JobExists
from paramdelta_dist.jobs.naming import JobName, parse_job_id, stem_of
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.redaction import redacted
from paramdelta_dist.storage import redact

STOP_SECONDS = 30
"""How long a driver that is stopped may take to end its workers and uploads; Ray itself would kill it after three."""
OVERWRITE = "overwrite"


@dataclass(frozen=True)
class Submission:
    """What is to run."""

    recipe: Recipe
    fingerprint: str | None
    """The plan's; None where none was made, so that nothing is known of the inputs."""
    options: tuple[str, ...] = ()
    """For the merge on the cluster."""
    overwrite: bool = False
    begun: bool = False
    """Whether the output holds the beginning of this very merge."""
    ship: str = "image"

    @property
    def text(self) -> str:
        return parcel.recipe_text(self.recipe)

    @property
    def stem(self) -> str:
        return stem_of(self.fingerprint or self.text, self.recipe.output)


@dataclass(frozen=True)
class Submitted:
    name: JobName
    joined: bool
    """Whether the job ran already."""
    notes: tuple[str, ...] = ()


def submit(cluster: Cluster, submission: Submission) -> Submitted:
    last = last_attempt(cluster.jobs(), submission.stem)
    if last is not None and not last[1].over:
        return Submitted(last[0], joined=True)
    name = JobName(submission.stem, last[0].attempt + 1 if last else 1)
    overwrite, notes = submission.overwrite, list[str]()
    if overwrite and submission.begun and last is not None and last[1].metadata.get(OVERWRITE) == "true":
        overwrite = False
        notes.append(f"goes on from {last[0]}, which has replaced the output's old content already")
    options = [*submission.options, *(["--overwrite"] if overwrite else [])]
    with tempfile.TemporaryDirectory(prefix="paramdelta-") as folder:
        parcel.pack(Path(folder), submission.text, submission.ship)
        try:
            cluster.submit(
                str(name),
                parcel.command(cluster.python(), options),
                folder=Path(folder),
                environment={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), version.VARIABLE: __version__},
                metadata=_metadata(submission, name),
            )
        except JobExists:  # somebody else submits the same at this moment
            return Submitted(name, joined=True)
    return Submitted(name, joined=False, notes=tuple(notes))


def last_attempt(jobs: Sequence[Job], stem: str) -> tuple[JobName, Job] | None:
    named = [(name, job) for job in jobs if (name := parse_job_id(job.id)) and name.stem == stem]
    return max(named, key=lambda pair: pair[0].attempt, default=None)


def _metadata(submission: Submission, name: JobName) -> Mapping[str, str]:
    """For people who look at the dashboard, and for the next submission. Everybody on the cluster can read it."""
    told = {
        "paramdelta-dist": __version__,
        "output": redact(submission.recipe.output),
        "fingerprint": submission.fingerprint or "",
        "attempt": str(name.attempt),
        OVERWRITE: "true" if submission.overwrite else "false",
    }
    return {name: redacted(value) for name, value in told.items()}
