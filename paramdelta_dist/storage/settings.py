"""Settings by which a store is reached: engine, endpoint, region, profile. Never a secret: those stay in the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from paramdelta_dist.storage.multipart import PART_SIZE
from paramdelta_dist.storage.retry import DEFAULT_RETRIES, RetryPolicy
from paramdelta_dist.storage.store import Store
from paramdelta_dist.storage.urls import scheme_of

Engine = Literal["auto", "obstore", "fsspec"]


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Settings for the URLs below one prefix. None and False mean: as the environment says."""

    engine: Engine = "auto"
    endpoint: str | None = None
    """Base URL of the service; http:// allows unencrypted traffic."""
    region: str | None = None
    profile: str | None = None
    """Section of the AWS configuration files."""
    anonymous: bool = False
    """Send unsigned requests, for public buckets."""
    retries: RetryPolicy = DEFAULT_RETRIES
    """The numbers by which requests are tried again; no recipe says."""
    part_size: int = PART_SIZE
    """Bytes of one part of a large upload, unless the object needs larger ones; no recipe says."""

    @property
    def location(self) -> dict[str, str]:
        """Those that decide where the bytes at a URL live, as far as they are given; the others are about the way there."""
        given = {"endpoint": self.endpoint and self.endpoint.rstrip("/"), "region": self.region, "profile": self.profile}
        return {name: value for name, value in given.items() if value}


def as_it_is(store: Store) -> Store:
    return store


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Settings by URL prefix; the longest prefix that fits a URL wins. A prefix ends where a part of the URL ends."""

    by_prefix: Mapping[str, StoreSettings] = field(default_factory=dict)
    through: Callable[[Store], Store] = as_it_is
    """Gives the store that is used in place of each that is opened: one that watches the requests to it, for instance."""

    def for_url(self, url: str) -> StoreSettings:
        fitting = [prefix for prefix in self.by_prefix if not prefix or (url + "/").startswith(prefix.rstrip("/") + "/")]
        return self.by_prefix[max(fitting, key=len)] if fitting else StoreSettings()

    def locations(self, urls: Iterable[str]) -> dict[str, dict[str, str]]:
        """The endpoint, region and profile that the settings give for each of these URLs; URLs without any are left out.

        What the environment says is no part of it: on a cluster that is the nodes', and the same for every job.
        """
        found = {url: self.for_url(url).location for url in urls if scheme_of(url)}
        return {url: location for url, location in found.items() if location}
