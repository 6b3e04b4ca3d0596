"""Inspecting a checkpoint: what it holds, from its headers alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.checkpoint import dtype_counts
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.encoded_notes import schemes_of
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import StorageConfig, normalize, redact


def inspect(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What a checkpoint holds, from its headers alone."""
    checkpoint = open_checkpoint(normalize(url), storage or StorageConfig())
    logical = checkpoint
    with suppress(CheckpointError):  # of scales that do not fit: `check` says so, and what is stored can be shown all the same
        logical = with_logical_tensors(checkpoint)
    schemes = schemes_of(logical.tensors)
    return {
        "url": redact(checkpoint.url),
        "architecture": checkpoint.architecture,
        "model_type": (checkpoint.config or {}).get("model_type"),
        "tensors": len(checkpoint.tensors),
        "parameters": logical.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": dtype_counts(checkpoint),
        **({"quantised": schemes} if schemes else {}),
        "tied_embeddings": checkpoint.tied_embeddings,
        "files": [
            {
                "name": file.name,
                "size": file.identity.size,
                "tag": file.identity.tag,
                "tensors": sum(tensor.file == position for tensor in checkpoint.tensors.values()),
            }
            for position, file in enumerate(checkpoint.files)
        ],
        "side_files": list(checkpoint.side_files),
        "orphans": list(checkpoint.orphans),
        "unlisted": list(checkpoint.closed),
        "tensor_list": [
            {"name": name, "dtype": t.dtype, "shape": list(t.shape), "file": checkpoint.files[t.file].name}
            for name, t in checkpoint.tensors.items()
        ],
    }
