"""How to reach a store: engine, endpoint, region, profile. Never a secret: those stay in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Settings by URL prefix; the longest prefix that fits a URL wins. A prefix ends where a part of the URL ends."""

    by_prefix: Mapping[str, StoreSettings] = field(default_factory=dict)

    def for_url(self, url: str) -> StoreSettings:
        fitting = [prefix for prefix in self.by_prefix if not prefix or (url + "/").startswith(prefix.rstrip("/") + "/")]
        return self.by_prefix[max(fitting, key=len)] if fitting else StoreSettings()
