"""Python's search for cycles, out of the way where there are none to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Planning makes millions of small records, importing torch a million objects, and neither makes cycles: looking for
    them again and again takes longer than planning itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
