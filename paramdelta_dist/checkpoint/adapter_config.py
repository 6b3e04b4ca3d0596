"""The config of a LoRA adapter: what decides its arithmetic, and every kind of adapter that is refused, each by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
MERGE_FIRST = "merge it into its base with peft (merge_and_unload), save the result, and name that as the delta's `post`"
"""The way out wherever a delta cannot be told from the adapter alone."""
_MUTATING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that change the base's weights before the training, so that the adapter belongs to others."""
_REFUSED = {
    "use_dora": "DoRA scales the rows of its base's weights, which the adapter does not hold",
    "lora_bias": "`lora_bias` adds biases of the factors to those of the base",
    "use_qalora": "QALoRA pools its inputs by the groups of a quantised base",
    "use_bdlora": "BD-LoRA has factors of blocks",
    "kasa_config": "KaSA cuts off the smallest singular values of the base's weights",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "arrow_config": "Arrow chooses among adapters for each token",
    "alora_invocation_tokens": "an activated LoRA holds for the tokens behind its invocation alone, and not for the model",
    "layer_replication": "`layer_replication` gives the model more layers than its base has",
    "trainable_token_indices": "trainable tokens are whole rows in place of the base's, and not the rest of the tensor",
}
_NO_MERGE = ("monteclora_config", "arrow_config", "alora_invocation_tokens")
"""Those that no weights can hold."""
_LONGEST_PATTERN = 2000
_NESTED = re.compile(r"\([^()]*[+*{][^()]*\)\s*[+*{]")
"""Repetitions of repetitions, which can take forever to match."""


@dataclass(frozen=True)
class AdapterConfig:
    """All that an adapter's config decides. Paths are those of modules, as the adapter names them, without what peft puts before them."""

    rank: int
    alpha: float
    root: bool
    """The scaling is alpha / √rank in place of alpha / rank."""
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    """Of the modules whose path ends as one of these says, of which the first counts."""
    transposed: bool
    """Weights are stored as [in, out]."""
    modules: tuple[str, ...] | re.Pattern[str] | None
    """Ends of the paths of modules that are adapted, or what the whole path matches; None for all."""
    excluded: tuple[str, ...] | re.Pattern[str]
    layers: frozenset[int] | None
    """Numbers of the layers in which modules are adapted; None for all."""
    parameters: tuple[str, ...]
    """Ends of the names of tensors without a module of their own, such as those of fused experts."""
    saved: tuple[str, ...]
    """Ends of the paths of modules that the adapter holds whole."""
    grew_from: str
    """Name of the base, as the training called it; empty where it does not say."""
    version: tuple[int, int] | None
    """Of the peft that saved it; None where it does not say."""

    def rank_of(self, path: str) -> int:
        return next((rank for pattern, rank in self.ranks if pattern.match(path)), self.rank)

    def scaling_of(self, path: str) -> float:
        """The factor of a product."""
        rank = self.rank_of(path)
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)

    def adapts(self, path: str) -> bool:
        """Whether a module is one of those that the training adapted."""
        if self.layers is not None and not any(int(number) in self.layers for number in re.findall(r"\.(\d+)\.", f"{path}.")[:1]):
            return False
        return (self.modules is None or _is_one_of(path, self.modules)) and not _is_one_of(path, self.excluded)

    def adapts_parameter(self, name: str) -> bool:
        return _is_one_of(name, self.parameters)


def _is_one_of(path: str, ends: tuple[str, ...] | re.Pattern[str]) -> bool:
    if isinstance(ends, re.Pattern):
        return ends.fullmatch(path) is not None
    return any(path == end or path.endswith(f".{end}") for end in ends)


def parse_adapter_config(table: Mapping[str, Any], *, where: str) -> AdapterConfig:
    """The config from the content of adapter_config.json, whose place is `where`.

    Raises CheckpointError that lists every reason why this is no adapter that can be a delta by itself.
    """
    problems = list(_refusals(table))
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    try:
        return _parsed(table)
    except (ValueError, TypeError, OverflowError, re.error) as error:
        raise CheckpointError(f"{where}: {error}; get the adapter once more from where it came, or save it again") from None


def _refusals(table: Mapping[str, Any]) -> Iterator[str]:
    kind = table.get("peft_type")
    if kind != "LORA":
        yield f"peft_type is {shown(kind)}, and only LORA is a sum of products; {MERGE_FIRST}"
        return
    start = table.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MUTATING):
        yield (
            f"init_lora_weights is {shown(start)}: the training changed the base's weights before its first step, and this adapter belongs "
            "to those; save it with peft's `path_initial_model_for_weight_conversion`, which makes it one of the base's own"
        )
    for key, why in _REFUSED.items():
        if table.get(key) not in (None, False, [], {}, ""):
            way = "it has no merged weights; leave it out" if key in _NO_MERGE else MERGE_FIRST
            yield f"{key} is set: {why}; {way}"


def _parsed(table: Mapping[str, Any]) -> AdapterConfig:
    return AdapterConfig(
        rank=_rank(table.get("r", 8), "r"),
        alpha=_number(table.get("lora_alpha", 8), "lora_alpha"),
        root=bool(table.get("use_rslora")),
        ranks=_patterns(table.get("rank_pattern"), "rank_pattern", _rank),
        alphas=_patterns(table.get("alpha_pattern"), "alpha_pattern", _number),
        transposed=bool(table.get("fan_in_fan_out")),
        modules=_modules(table.get("target_modules"), "target_modules"),
        excluded=_modules(table.get("exclude_modules"), "exclude_modules") or (),
        layers=_layers(table.get("layers_to_transform")),
        parameters=_names(table.get("target_parameters"), "target_parameters"),
        saved=_names(table.get("modules_to_save"), "modules_to_save"),
        grew_from=str(table.get("base_model_name_or_path") or ""),
        version=_version(table.get("peft_version")),
    )


def _rank(value: Any, key: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"{key} {shown(value)} is not a rank")
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} {shown(value)} is not a number")
    return float(value)


def _patterns(value: Any, key: str, check: Callable[[Any, str], Any]) -> tuple[tuple[re.Pattern[str], Any], ...]:
    if not isinstance(value, (dict, type(None))):
        raise ValueError(f"{key} is not an object")
    return tuple((_compiled(rf"(.*\.)?({_looked_at(name, key)})$"), check(one, key)) for name, one in (value or {}).items())


def _looked_at(text: str, key: str) -> str:
    if len(text) > _LONGEST_PATTERN or _NESTED.search(text):
        raise ValueError(f"{key} {shown(text)} is a pattern that can take forever to match; write it as names")
    return text


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError) as error:
        raise ValueError(f"{shown(text)} is not a regular expression ({error})") from None


def _modules(value: Any, key: str) -> tuple[str, ...] | re.Pattern[str] | None:
    if value is None or value == "all-linear":
        return None
    if isinstance(value, str):
        return _compiled(_looked_at(value, key))
    return _names(value, key)


def _names(value: Any, key: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{key} {shown(value)} is not a list of names")
    return tuple(value)


def _layers(value: Any) -> frozenset[int] | None:
    layers = [value] if type(value) is int else value
    if layers is None or layers == []:
        return None
    if not isinstance(layers, list) or not all(type(number) is int for number in layers):
        raise ValueError(f"layers_to_transform {shown(value)} is not a list of numbers")
    return frozenset(layers)


def _version(value: Any) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,6})\.(\d{1,6})", value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None
