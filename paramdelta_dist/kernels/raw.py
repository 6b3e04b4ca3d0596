"""Elements as they are stored, before any library knows of them."""

from __future__ import annotations

from typing import NamedTuple


class RawElements(NamedTuple):
    """Elements of a run as they are stored."""

    data: memoryview
    """Bytes, little-endian: a whole number of items."""
    dtype: str
    """BF16, F16, F32 or F64."""
