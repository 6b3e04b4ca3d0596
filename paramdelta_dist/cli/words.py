"""Words and figures that tables and progress share."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.redaction import redacted
from paramdelta_dist.sizes import format_memory


def first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def few(names: list[str]) -> str:
    """How many, and the last of them, which are the newest where names begin with a date."""
    shown = ", ".join(names[-3:])
    return f"{len(names)}: {'… ' if len(names) > 3 else ''}{shown}" if names else "none"


def figure(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if percent else f"{value:.4g}"


def memory_line(memory: dict[str, Any]) -> str:
    workers = plural(memory["workers"] * memory["threads"], "worker")
    return f"{format_memory(memory['projected'])} projected for a process of {workers}, {format_memory(memory['budget'])} allowed"


def count(items: Any, noun: str) -> str:
    return plural(len(items), noun)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shown(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in redacted(text))
