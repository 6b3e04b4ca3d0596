"""Sizes as people write them ("5GB", "512MiB") to bytes and back, and rates and durations for people to read."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "": 1, "B": 1,
    "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "T": 10**12, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
SIZE_PATTERN = r"^\s*\d{1,18}(\.\d{1,9})?\s*([Bb]|[KMGTkmgt]([Ii]?[Bb])?)?\s*$"
"""What of it a regular expression of any kind can say."""


def parse_size(text: str | int) -> int:
    """Bytes meant by `text`: a number of bytes, or a number with a unit; GB is 10^9 and GiB 2^30.

    Raises ValueError when it is neither.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write a number with a unit, such as 5GB or 512MiB")
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])


def format_size(size: float) -> str:
    """`size` bytes in decimal units with three significant digits: 16.1 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.3g} {unit}"


def format_memory(size: float) -> str:
    """`size` bytes in binary units, as memory limits are written: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1023.5 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration: 7.3 s, 4 min 12 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


_DURATION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|min|m|h|d)\s*", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds meant by `text`: 30s, 10min, 24h, 7d. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write a number with a unit, such as 30min, 24h or 7d")
    return float(match[1]) * _SECONDS[match[2]]
