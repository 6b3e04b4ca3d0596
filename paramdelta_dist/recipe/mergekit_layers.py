"""Values of a mergekit config by layers and filters, as rules of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paramdelta_dist.recipe.mergekit_methods import Change, share, whole_number

BEFORE = ("model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight", "gpt_neox.embed_in.weight")

BEHIND = ("model.norm.weight", "lm_head.weight", "transformer.ln_f.bias", "model.final_layernorm.weight", "embed_out.weight")

INSIDE = (
    *(
        f"model.layers.0.self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "q_norm", "k_norm", "dense")
    ),
    *(
        f"model.layers.0.mlp.{name}.bias"
        for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "experts.0.up_proj")
    ),
    *(f"model.layers.0.{name}_layernorm.weight" for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
    *(f"model.layers.0.block_sparse_moe.{name}.weight" for name in ("gate", "experts.0.w1", "experts.0.w2", "experts.0.w3")),
    *(f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")),
)
"""Names of tensors before, behind and inside the layers, of usual architectures."""


def as_rules(
    settings: Sequence[Any], change: Change, where: Mapping[str, str], *, names: Sequence[str] = (), outside: bool = False
) -> Iterator[dict[str, Any]]:
    """Rules for the tensors that `where` selects, from settings of which the strongest comes first. Filters that mean other tensors than
    any of `names` are left out; `outside` the layers gradients have their first number. Raises ValueError."""
    others = {*BEFORE, *BEHIND, *INSIDE} - set(names)
    for setting in settings:
        if setting is None or setting == []:
            continue
        for entry in setting if _is_conditional(setting) else [setting if isinstance(setting, dict) else {"value": setting}]:
            if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"value", "filter"}:
                raise ValueError("should be a value, a gradient, or a list of `{filter, value}`")
            pattern = entry.get("filter")
            general = pattern in (None, "*")
            if not general and names and not _means(str(pattern), names, others, outside=outside):
                continue
            found = {} if general else {"match": "*" + re.sub(r"([*?[])", r"[\1]", str(pattern)) + "*"}
            yield {**found, **where, "value": _changed(entry["value"], change, outside=outside)}
            if general:
                return


def _means(pattern: str, names: Sequence[str], others: Iterable[str], *, outside: bool) -> bool:
    """Whether a filter may mean one of `names`: of a name that is not known anywhere, it is thought to stand inside the layers."""
    if any(pattern in name for name in names):
        return True
    return not outside and not any(pattern in name for name in others)


def _is_conditional(setting: Any) -> bool:
    return isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting)


def _changed(value: Any, change: Change, *, outside: bool) -> Any:
    """A value or gradient in our words."""
    if not isinstance(value, list):
        return change(_number(value))
    values = [_number(entry) for entry in value]
    if not values or not all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in values):
        raise ValueError("a gradient of anything but numbers cannot be mapped")
    if change is share and not all(0 <= entry <= 1 for entry in values):
        raise ValueError("a gradient of shares that leaves 0 to 1 cannot be mapped")
    return change(values[0]) if outside or len(values) == 1 else [change(float(entry)) for entry in values]


def layer_span(given: Any) -> tuple[()] | tuple[int, int] | None:
    """First layer and the one behind the last; () where nothing is said, None where it is no range."""
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return None
    try:
        first, behind = (whole_number(_number(end)) for end in given)
    except ValueError:
        return None
    return first, behind


def _number(value: Any) -> Any:
    """Numbers as YAML 1.1 does not read them: 1e-4 is text to it."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
        return float(value)
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{str(value)[:60]!r} is not a value")
    return value
