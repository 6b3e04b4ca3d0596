"""The end of a job: the exit code that its submitter gives on, and the way to go on."""

from __future__ import annotations

import re
from typing import NamedTuple

from paramdelta_dist.errors import EngineError, InputError, Interrupted, ParamDeltaError, UsageError
from paramdelta_dist.jobs.job import PYTHON, Job

INTERRUPTED, TRY_AGAIN, USAGE, BUG = Interrupted.exit_code, EngineError.exit_code, UsageError.exit_code, ParamDeltaError.exit_code
OURS = (BUG, USAGE, InputError.exit_code, 4, 5, TRY_AGAIN, INTERRUPTED)
"""Codes that the driver itself chose."""
_MISSING = re.compile(r"No module named '?(\w+)")


class Ending(NamedTuple):
    exit_code: int
    words: str
    """For people: what happened, and what to do now; empty where all is well."""


def ending_of(job: Job, log: str = "") -> Ending:
    """Of a job that is over. Its driver's own exit code where it had one; never 0 for a job that was stopped."""
    again = "submit again: it goes on from what is finished"
    if job.state == "succeeded":
        return Ending(0, "")
    if job.state == "stopped":
        return Ending(INTERRUPTED, f"job {job.id} was stopped; {again}")
    code, python = job.exit_code, job.metadata.get(PYTHON, "Python")
    said = f"{log[-4000:]}\n{job.message}"
    missing = _MISSING.findall(said)
    if missing and missing[-1] != "paramdelta_dist" and code == BUG:
        return Ending(
            USAGE,
            f"{python} on the cluster's head has no module {missing[-1]}: install paramdelta-dist with all it depends on there "
            f"({python} -m pip install), or name the interpreter that has it with --python PATH. {_job(job)}",
        )
    if missing and code == BUG:
        return Ending(
            USAGE,
            f"{python} on the cluster's head has no paramdelta-dist: submit with `--ship package` to send it along, install it there "
            f"({python} -m pip install), or name the interpreter that has it with --python PATH. {_job(job)}",
        )
    if code in (126, 127):
        return Ending(
            USAGE,
            f"the cluster's head has no Python at {python}, or cannot run it: name one that has the package with --python PATH. "
            f"{_job(job)}",
        )
    if code is None:
        reason = (job.message or job.failure or "no reason given").strip().partition("\n")[0][:500]
        return Ending(
            TRY_AGAIN,
            f"job {job.id} failed before or around the merge ({job.failure or 'unknown'}): {reason}. When that is mended, {again}",
        )
    if code < 0 or (code > 128 + 1 and code not in OURS):
        number = -code if code < 0 else code - 128
        memory = ", perhaps for want of memory on the head node" if number == 9 else ""
        return Ending(TRY_AGAIN, f"the driver of job {job.id} was killed (signal {number}{memory}); {again}")
    if code not in OURS:
        return Ending(BUG, f"job {job.id} ended with the unknown exit code {code}")
    advice = f"; {again}" if code in (TRY_AGAIN, INTERRUPTED) else ""
    return Ending(code, f"job {job.id} ended with exit code {code}{advice}")


def _job(job: Job) -> str:
    return f"(Job {job.id}.)"
