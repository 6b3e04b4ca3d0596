"""Pauses the garbage collector while many acyclic objects are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Planning makes millions of small records, importing torch a million objects, and neither makes cycles: looking for
    them again and again takes longer than planning itself. Nor are they looked at afterwards, until everything is."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():  # frozen and thawed, what is young is old
                gc.freeze()
                gc.unfreeze()
            gc.enable()
