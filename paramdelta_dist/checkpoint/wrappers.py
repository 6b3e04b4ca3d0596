"""The name that a config has for a model, without its wrappers: the class of a trainer, a vision or speech model around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TRAINERS = re.compile(r"^(FSDP\d*|FullyShardedDataParallel|DistributedDataParallel|DDP|Peft(?=[A-Z]\w+For[A-Z]))")
_AROUND = frozenset({"vl", "5", "text", "omni", "thinker", "audio", "vision", "conditional", "v"})
"""Parts of a `model_type` that say what is around the language model, or a version of that."""
_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")


def same_class(one: Any, other: Any) -> bool:
    """Whether values of `architectures` are the same but for the prefix that a trainer puts before a class."""

    def plain(value: Any) -> Any:
        return [_TRAINERS.sub("", name) if isinstance(name, str) else name for name in value] if isinstance(value, list) else value

    return bool(plain(one) == plain(other))


def same_language_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one config is of a language model, and the other of that or of what wraps the same."""
    return bool(_cores(one) & _cores(other))


def _cores(config: Mapping[str, Any]) -> set[str]:
    return {_core(table["model_type"]) for table in language_configs(config) if isinstance(table.get("model_type"), str)}


def language_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config, and the sections of it that are of the language model, from the outermost in."""
    yield config
    for section in _SECTIONS:
        if isinstance(inner := config.get(section), Mapping):
            yield from language_configs(inner)


def _core(model_type: str) -> str:
    parts = [part for part in model_type.lower().split("_") if part not in _AROUND]
    return re.sub(r"(?<=\d)v$", "", "_".join(parts)) if parts else model_type
