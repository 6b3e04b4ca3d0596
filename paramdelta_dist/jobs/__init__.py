"""Talking to a Ray cluster from outside: submit a merge as a job, follow it, look at it, stop it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paramdelta_dist.jobs.address import choose_address

if TYPE_CHECKING:
    from paramdelta_dist.jobs.job import Cluster


def connect(address: str | None) -> Cluster:
    """The cluster at `address`, else the one that the environment names, else the one on this machine."""
    chosen = choose_address(address, os.environ)
    from paramdelta_dist.jobs.ray_jobs import RayCluster  # a second, which a mistake in the address need not wait for

    return RayCluster(chosen)
