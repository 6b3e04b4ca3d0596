"""The state of a job as plain values: while it runs, from its log; when it is over, with its end."""

from __future__ import annotations

import time
from typing import Any

from paramdelta_dist import stopping
from paramdelta_dist.errors import EngineError, Interrupted
from paramdelta_dist.jobs.exit_code import ending_of
from paramdelta_dist.jobs.follow import follow
from paramdelta_dist.jobs.job import Cluster, Job, Unreachable
from paramdelta_dist.jobs.job_id import parse_job_id
from paramdelta_dist.jobs.log_reader import Listener, LogReader
from paramdelta_dist.jobs.submit import STOP_SECONDS

POLL_SECONDS = 0.5
STOP_ATTEMPT_SECONDS = 15.0
"""Seconds that a job which is only being started may take until it can be told to stop."""


def watch(cluster: Cluster, job_id: str, listener: Listener) -> dict[str, Any]:
    """Follow a job to its end. Raises Interrupted on Ctrl-C, which leaves the job as it is."""
    reader, tail = LogReader(listener), ""
    detached = (
        f"detached; job {job_id} runs on. Follow it again: paramdelta-dist logs {job_id} -f{cluster.hint}. "
        f"Stop it: paramdelta-dist stop {job_id}{cluster.hint}"
    )
    stopping.say(detached)

    def show(text: str) -> None:
        nonlocal tail
        tail = (tail + text)[-8000:]
        reader.feed(text)

    try:
        job = follow(cluster, job_id, show, listener.note)
    except KeyboardInterrupt:
        raise Interrupted(detached) from None
    reader.close()
    return _over(cluster, job, reader, tail)


def job_state(cluster: Cluster, job_id: str) -> dict[str, Any]:
    """The progress of a job that runs, or the end of one that is over."""
    job, reader = cluster.job(job_id), LogReader()
    try:
        log = cluster.log(job_id)
    except Unreachable:  # the node that has it is gone
        log = ""
    reader.feed(log)
    reader.close()
    if job.over:
        return _over(cluster, job, reader, log[-8000:])
    return {**describe(job), "cluster": cluster.url, **reader.progress.as_document()}


def stop(cluster: Cluster, job_id: str, *, wait: bool) -> dict[str, Any]:
    """Ask a job to end, and with `wait` see it ended. Raises EngineError when it does not."""
    began = time.monotonic()
    job = cluster.job(job_id)
    while not job.over and not cluster.stop(job_id):
        if time.monotonic() - began > STOP_ATTEMPT_SECONDS:
            raise EngineError(f"job {job_id} is {job.state} and cannot be told to stop yet; try again")
        time.sleep(POLL_SECONDS)
        job = cluster.job(job_id)
    asked = not job.over
    while wait and not job.over:
        if time.monotonic() - began > STOP_ATTEMPT_SECONDS + 2 * STOP_SECONDS:
            raise EngineError(
                f"job {job_id} was told to stop {2 * STOP_SECONDS} s ago and has not; `paramdelta-dist status {job_id}` tells more"
            )
        time.sleep(POLL_SECONDS)
        job = cluster.job(job_id)
    return {**describe(job), "cluster": cluster.url, "told_to_stop": asked}


def describe(job: Job) -> dict[str, Any]:
    """A job without its log."""
    name = parse_job_id(job.id)
    seconds = (job.ended or time.time()) - job.began if job.began else None
    return {
        "job": job.id,
        "state": job.state,
        "attempt": name.attempt if name else None,
        "command": job.metadata.get("command", "merge"),
        "output": job.metadata.get("output"),
        "began": job.began,
        "seconds": None if seconds is None else round(seconds, 1),
    }


def _over(cluster: Cluster, job: Job, reader: LogReader, tail: str) -> dict[str, Any]:
    ending = ending_of(job, tail)
    document = {**describe(job), "cluster": cluster.url, "exit_code": ending.exit_code}
    if reader.document and "error" not in reader.document:
        finished = {"exit_code": 0} if job.state == "stopped" else {}  # the stop came when there was nothing left to stop
        return {**document, **finished, "result": reader.document}
    document |= reader.progress.as_document()
    if ending.exit_code:
        told = (reader.document or {}).get("error", {})
        document["error"] = {"exit_code": ending.exit_code, "message": ending.words, **({"driver": told} if told else {})}
    return document
