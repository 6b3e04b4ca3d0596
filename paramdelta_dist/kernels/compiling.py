"""Compiling functions for the processor at hand, on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compiled by numba when first called, to run without Python's lock; kept on disk where there is a place for that."""

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written to
            return numba.njit(nogil=True, **options)(function)

    return compile_it
