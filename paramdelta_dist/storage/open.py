"""The choice of the engine that serves a URL, and one client per place and process."""

from __future__ import annotations

import os
from functools import lru_cache

from paramdelta_dist.errors import UsageError
from paramdelta_dist.storage.environment import check_environment, check_place, check_region, checked_url
from paramdelta_dist.storage.network import check_proxies
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.store import Store
from paramdelta_dist.storage.urls import redact, scheme_of

_OBSTORE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")


def open_store(url: str, config: StorageConfig) -> Store:
    """The store at a normalized URL. No request is made, except to find out which credentials there are.

    Raises UsageError for a scheme nobody serves, CredentialsError where no credentials can be found.
    """
    return config.through(_open(url, config.for_url(url)))


def open_input(url: str, config: StorageConfig) -> Store:
    """The same for what is read as a model: of a repository that an output is being written to, only what is published."""
    return config.through(_open(url, config.for_url(url), published=scheme_of(url) == "hf"))


@lru_cache(maxsize=256)
def _open(url: str, settings: StoreSettings, *, published: bool = False) -> Store:
    scheme = scheme_of(url)
    if not scheme:
        from paramdelta_dist.storage.local import LocalStore

        return LocalStore(url)
    if scheme in _OBSTORE_SCHEMES and not url.partition("://")[2].partition("/")[0]:
        raise UsageError(f"{redact(url)}: this URL names no bucket or host")
    _check(url, scheme, settings)
    if scheme == "hf":
        from paramdelta_dist.storage.hub import HubStore

        return HubStore(url, settings, published=published)
    engine = settings.engine
    if engine == "auto":
        emulated = scheme == "gs" and "STORAGE_EMULATOR_HOST" in os.environ  # emulators speak the JSON API, obstore the XML one
        engine = "obstore" if scheme in _OBSTORE_SCHEMES and not emulated else "fsspec"
    if engine == "obstore":
        if scheme not in _OBSTORE_SCHEMES:
            raise UsageError(f"{redact(url)}: the obstore engine serves {', '.join(_OBSTORE_SCHEMES)}; use engine: fsspec")
        from paramdelta_dist.storage.obstore_store import ObstoreStore

        return ObstoreStore(url, settings)
    from paramdelta_dist.storage.fsspec_store import FsspecStore

    return FsspecStore(url, settings)


def _check(url: str, scheme: str, settings: StoreSettings) -> None:
    """Refuse settings that cannot work, before a library reads them."""
    if scheme in (*_OBSTORE_SCHEMES, "gcs", "hf"):
        check_environment(scheme)
        check_proxies()
        check_place(url)
    if settings.endpoint:
        checked_url(settings.endpoint, "endpoint under `storage:` in the recipe")
    if settings.region:
        check_region(settings.region, "region under `storage:` in the recipe")
