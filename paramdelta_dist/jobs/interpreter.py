"""The Python that a submitted job runs with, where its submitter named one: driver and workers alike."""

from __future__ import annotations

import os

VARIABLE = "PARAMDELTA_DIST_PYTHON"
"""Set in a submitted job: what `submit --python` named."""


def named_python() -> str | None:
    """The interpreter that whoever submitted this job named; None in all other processes."""
    return os.environ.get(VARIABLE) or None
