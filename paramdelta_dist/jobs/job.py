"""A job as its cluster tells of it, and what may be asked of a cluster."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from paramdelta_dist.errors import EngineError, ParamDeltaError

PYTHON = "python"
"""In the metadata of a job of ours: the interpreter that it was started with."""
State = Literal["pending", "running", "stopped", "succeeded", "failed"]


class Unreachable(EngineError):
    """The cluster does not answer at the moment; whatever runs there runs on."""

    retryable = True


class JobExists(ParamDeltaError):
    """Another submission took this id a moment ago. Handled inside, never shown."""


@dataclass(frozen=True)
class Job:
    id: str
    state: State
    metadata: Mapping[str, str]
    exit_code: int | None = None
    """Of the process, once it ended by itself; negative or above 128 where a signal ended it."""
    message: str = ""
    """The cluster's own words about its end."""
    failure: str | None = None
    """The cluster's word for what went wrong around the process, such as RUNTIME_ENV_SETUP_FAILURE."""
    began: float | None = None
    ended: float | None = None
    """Seconds since 1970."""

    @property
    def over(self) -> bool:
        return self.state in ("stopped", "succeeded", "failed")


class Cluster(Protocol):
    """A cluster that runs jobs. Every call raises Unreachable when no answer comes, CredentialsError when it is refused, and
    NotFound for a job that the cluster does not know."""

    url: str
    hint: str
    """The option that commands about this cluster need to find it: ` --address …`, or nothing."""

    def submit(self, job_id: str, command: str, *, folder: Path, environment: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        """Run `command` in a copy of `folder`. Raises JobExists when the id is taken."""
        ...

    def job(self, job_id: str) -> Job: ...

    def jobs(self) -> list[Job]:
        """All of them, also those that are not ours, in no order."""
        ...

    def stop(self, job_id: str) -> bool:
        """Ask it to end. Returns at once; False where it is so new that nobody can be asked yet."""
        ...

    def log(self, job_id: str) -> str: ...

    def tail(self, job_id: str) -> Generator[str, None, None]:
        """The log from its beginning as it is written, in pieces; an empty piece where nothing came for some seconds.

        May end before the job does.
        """
        ...

    def python(self) -> str:
        """The interpreter that Ray itself runs with on the head node, where jobs start."""
        ...
