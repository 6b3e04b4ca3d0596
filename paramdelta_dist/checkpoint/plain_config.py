"""Fields and files that describe a quantisation, and are left behind where its tensors are written as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramdelta_dist.checkpoint.declared import quantisation_fields

QUANTISATION_FILES = ("hf_quant_config.json", "quantize_config.json")
"""Files beside the weights that describe a quantisation, as ModelOpt and GPTQ write them."""
_BESIDE = ("expert_dtype", "scale_fmt")
"""Fields at the top of a config that say more of it."""


def fields_of_quantisation(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The fields of a config, by dotted name, that are wrong where all tensors are plain numbers."""
    return (*quantisation_fields(config), *(field for field in _BESIDE if field in (config or {})))


def is_of_quantisation(file: str) -> bool:
    """Whether a side file, by relative name, is wrong there too."""
    return file in QUANTISATION_FILES
