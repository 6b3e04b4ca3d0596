"""Ray clusters from outside: submit a merge as a job, follow it, look at it, stop it. Knows no tile and no kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from paramdelta_dist.jobs.address import choose_address
from paramdelta_dist.storage import redact

if TYPE_CHECKING:
    from paramdelta_dist.jobs.job import Cluster


def connect(address: str | None, note: Callable[[str], None]) -> Cluster:
    """The cluster at `address`, else the one that the environment names, else the one on this machine: which is then told
    to `note`, because nobody has said that it is the one."""
    chosen = choose_address(address, os.environ)
    from paramdelta_dist.jobs.ray_jobs import RayCluster  # a second, which a mistake in the address need not wait for

    cluster = RayCluster(chosen)
    if chosen.text is None:
        note(f"using the Ray cluster at {redact(cluster.url)}, which was found on this machine; --address names another")
    return cluster
