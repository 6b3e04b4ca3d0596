"""Where bytes live: one interface, three engines. Nothing outside this folder names fsspec, obstore or botocore."""

from paramdelta_dist.storage.blocks import WRITE_MEMORY
from paramdelta_dist.storage.leftovers import Leftover, find_leftovers, remove_leftover
from paramdelta_dist.storage.network import explained
from paramdelta_dist.storage.opening import open_store
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.store import Buffer, Identity, Store
from paramdelta_dist.storage.trust import bundle
from paramdelta_dist.storage.uploads import PARTS_IN_FLIGHT, part_size
from paramdelta_dist.storage.urls import inside, normalize, redact, scheme_of

__all__ = [
    "PARTS_IN_FLIGHT",
    "WRITE_MEMORY",
    "Buffer",
    "Identity",
    "Leftover",
    "StorageConfig",
    "Store",
    "StoreSettings",
    "bundle",
    "explained",
    "find_leftovers",
    "inside",
    "normalize",
    "open_store",
    "part_size",
    "redact",
    "remove_leftover",
    "scheme_of",
]
