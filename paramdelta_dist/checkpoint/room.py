"""Room: a bound on what the small files of models take in memory while a plan is made from them.

What JSON becomes is many times its text, and how many times is a matter of what is in it: it is reckoned from counts of the
characters that make values, before anything is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from paramdelta_dist.errors import OverBudget
from paramdelta_dist.sizes import format_memory

PLANNING = 176 << 20
"""The interpreter, the storage clients and their threads while a plan is made, without torch: measured 90 to 150 MiB."""

STRING, NUMBER, LIST, DICT, ENTRY, PAIR = 80, 32, 104, 272, 100, 72
"""Bytes of Python's objects, with what allocating and growing them leaves unused: of a short string, a number, a list and a table
without their contents, a place in a table, and a name with its value before they are in one."""
FEW = 4096
"""Bytes of a value of any kind."""
PLACE = 10
"""Bytes of a place in a list."""

_WIDE, _WIDEST = re.compile(rb"[\xc4-\xef]"), re.compile(rb"[\xf0-\xff]")


class Room:
    """Bytes that may be taken, and were at most. Safe to use from many threads."""

    def __init__(self, budget: int | None = None) -> None:
        """`budget` is that of the whole process; None where nobody bounds it."""
        self._budget = budget
        self._held = self.peak = 0
        self._lock = Lock()

    def take(self, size: int, what: str, *, ahead: int = 0) -> None:
        """Take `size` bytes for `what`. Raises OverBudget, with the way out, when they are not there; `ahead` is how many will be
        asked for besides."""
        with self._lock:
            if self._budget is not None and PLANNING + self._held + size > self._budget:
                needed = PLANNING + self._held + size + ahead
                raise OverBudget(
                    f"{what} takes about {format_memory(size)} of memory when it is read, {format_memory(needed)} with what else is to be "
                    f"read, and the budget is {format_memory(self._budget)}: allow more memory (--memory {-(-needed >> 20)}MiB)"
                )
            self._held += size
            self.peak = max(self.peak, self._held)

    def give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size

    @contextmanager
    def taken(self, size: int, what: str, *, ahead: int = 0) -> Iterator[None]:
        """Take `size` bytes for as long as the body runs."""
        self.take(size, what, ahead=ahead)
        try:
            yield
        finally:
            self.give_back(size)


def text_cost(data: bytes | bytearray) -> int:
    """Bytes that UTF-8 takes as a string, at most."""
    return len(data) if data.isascii() else len(data) * (4 if _WIDEST.search(data) else 2 if _WIDE.search(data) else 1)


def json_cost(data: bytes | bytearray, *, pairs: bool = False) -> int:
    """Bytes that JSON takes while and after it is parsed, its text not counted in, at most; `pairs` where names and values are
    looked at before they become a table."""
    names, lists, dicts = data.count(b":"), data.count(b"["), data.count(b"{")
    strings = data.count(b'"') // 2
    values = data.count(b",") + 1 + lists + dicts
    numbers = max(0, values + names - strings)
    text = text_cost(data)
    objects = strings * STRING + numbers * NUMBER + lists * LIST + values * PLACE + dicts * DICT + names * (ENTRY + pairs * PAIR)
    return 2 * text + objects + FEW
