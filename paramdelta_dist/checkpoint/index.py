"""The index of a sharded checkpoint: which file holds which tensor. Read strictly, written in Hugging Face's form."""

from __future__ import annotations

import json
import re
from typing import Any

from paramdelta_dist.checkpoint.header import damaged, shown, strict_json
from paramdelta_dist.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX = 256 << 20
"""Longest index that is read, in bytes."""

_UNSAFE = re.compile(r"^/|^[A-Za-z]:|\\|(^|/)\.{0,2}(/|$)|://|%2e|%2f|[\0-\x1f\x7f-\x9f\ud800-\udfff]", re.IGNORECASE)


def parse_index(text: bytes | bytearray, *, where: str) -> dict[str, str]:
    """File name of each tensor. Raises CheckpointError for anything else than names of files inside the folder."""
    try:
        index = strict_json(text)
    except CheckpointError as error:
        raise damaged(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: not valid JSON ({str(error)[:200]})") from None
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(f"{where}: weight_map is missing or empty")
    wrong = next((tensor for tensor, file in weight_map.items() if not isinstance(file, str) or not file), None)
    if wrong is not None:
        raise damaged(f"{where}: weight_map of {shown(wrong)} is not a file name")
    for file in dict.fromkeys(weight_map.values()):
        if _UNSAFE.search(file):
            raise damaged(f"{where}: weight_map names {shown(file)}, which is not a plain path inside the folder")
        if not file.endswith(".safetensors"):
            raise damaged(f"{where}: weight_map names {shown(file)}, which is not a safetensors file")
    return weight_map


def render_index(weight_map: dict[str, str], *, total_size: int, total_parameters: int) -> bytes:
    """The index of an output: `total_size` in bytes of tensor data, names sorted as Hugging Face writes them."""
    index = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
