"""One version everywhere: what submits, what drives and what works must be the same, or the bytes might not be."""

from __future__ import annotations

import os

from paramdelta_dist._version import __version__
from paramdelta_dist.errors import UsageError

VARIABLE = "PARAMDELTA_DIST_VERSION"
"""Set in a submitted job: the version of what submitted it."""


def require_submitters_version() -> None:
    """Raises UsageError in a job that another version submitted."""
    submitted = os.environ.get(VARIABLE, __version__)
    if submitted != __version__:
        raise UsageError(
            f"version {submitted} submitted this job, and the cluster has version {__version__}: submit with `--ship package` to send "
            f"your version along, or install the same version on both sides"
        )
