"""The size of the parts of large uploads: one rule for every engine and for the memory plan."""

from __future__ import annotations

PART_SIZE = 16 << 20
"""Bytes of one part, unless the object needs larger ones."""
MAX_PARTS = 9_000
"""Parts planned for at most; S3 allows 10,000."""
PARTS_IN_FLIGHT = 4
"""Parts on their way to the store at a time."""


def part_size(size: int, least: int = 0) -> int:
    """Bytes of each part of an object of `size` bytes, by default PART_SIZE at least."""
    return max(least or PART_SIZE, -(-size // MAX_PARTS))
