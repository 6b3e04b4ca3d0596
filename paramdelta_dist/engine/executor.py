"""The interface of an executor, which runs one function over many units and gives results in the order of completion."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from paramdelta_dist.engine.run_stats import RunStats


class Unit(Protocol):
    """One piece of work, about one file of an output."""

    @property
    def file(self) -> str:
        """Name of the file; no two units of a run share it."""
        ...

    @property
    def size(self) -> int:
        """Bytes that will have been reported when it is done."""
        ...

    @property
    def bytes_moved(self) -> int:
        """Bytes that are read and written until it is done, those that are read more than once as often: what its time is judged by."""
        ...


J = TypeVar("J")
U = TypeVar("U", bound=Unit)
R = TypeVar("R")

Function = Callable[..., R]
"""`function(job, unit, *, advance, cancelled) -> result`, importable by name: it travels to workers. `advance(bytes)`
reports what is done of the unit, `cancelled()` is asked often, and once it says so the function ends soon, best with Interrupted.
Running it twice does no harm, at the same time neither."""


class Counts(NamedTuple):
    """Figures of an executor at one moment."""

    workers: int
    """Workers that there are."""
    retries: int
    """Attempts that were made up for, in runs that have ended and in the one under way."""


class Executor(Protocol):
    """Runs a function over units somewhere. Knows nothing of what it computes."""

    @property
    def stats(self) -> RunStats:
        """Figures of the runs that have ended."""
        ...

    def counts(self) -> Counts:
        """The figures at this moment."""
        ...

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        """Results as units finish, when nothing works on the unit any more. `advance` is told bytes as they are done, and
        taken back (negative) when a unit starts again; on a cluster also that there are none (0), every few seconds.

        An exception of a unit stops the others, leaves finished ones in place, and comes out; so does closing the
        iterator.
        """
        ...
