"""The border to libraries: whatever one raises becomes an error of our tree here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paramdelta_dist.errors import ParamDeltaError

OURS = (ParamDeltaError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that go through as they are. All else is the library's, exceptions outside `Exception` included: a panic of Rust is one."""


@contextmanager
def translated(where: str, meaning: Callable[[BaseException, str], ParamDeltaError]) -> Iterator[None]:
    """Raise what `meaning` makes of an exception and of the place it happened at."""
    try:
        yield
    except OURS:
        raise
    except BaseException as error:
        raise meaning(error, where) from error
