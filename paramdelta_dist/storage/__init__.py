"""Stores of bytes: one interface, four engines. The only room that knows fsspec, obstore, huggingface_hub and botocore; knows no model."""

from paramdelta_dist.storage.direct_write import WRITE_MEMORY
from paramdelta_dist.storage.hub_places import hub_place
from paramdelta_dist.storage.leftovers import Leftover, find_leftovers, remove_leftover
from paramdelta_dist.storage.local import closed_folders, read_named_file
from paramdelta_dist.storage.multipart import PARTS_IN_FLIGHT, part_size
from paramdelta_dist.storage.network import explained
from paramdelta_dist.storage.open import open_input, open_store
from paramdelta_dist.storage.part_names import is_earlier_part, is_part
from paramdelta_dist.storage.sameness import shared_files
from paramdelta_dist.storage.sequential import PIECE, PIECES_MEMORY, read_whole, stream_object
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.store import NO_FILE, Buffer, Identity, Store
from paramdelta_dist.storage.trust import bundle
from paramdelta_dist.storage.urls import inside, normalize, redact, scheme_of

__all__ = [
    "NO_FILE",
    "PARTS_IN_FLIGHT",
    "PIECE",
    "PIECES_MEMORY",
    "WRITE_MEMORY",
    "Buffer",
    "Identity",
    "Leftover",
    "StorageConfig",
    "Store",
    "StoreSettings",
    "bundle",
    "closed_folders",
    "explained",
    "find_leftovers",
    "hub_place",
    "inside",
    "is_earlier_part",
    "is_part",
    "normalize",
    "open_input",
    "open_store",
    "part_size",
    "read_named_file",
    "read_whole",
    "redact",
    "remove_leftover",
    "scheme_of",
    "shared_files",
    "stream_object",
]
