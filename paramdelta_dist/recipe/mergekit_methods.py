"""The table of mergekit's methods: the method, parameters and differences that each maps to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Change = Callable[[Any], Any]
"""What one of mergekit's values is here. Raises ValueError where nothing is."""


@dataclass(frozen=True)
class Known:
    """One of mergekit's methods and what it is here."""

    method: str
    takes: str
    """deltas, models, or pair: what the recipe lists; with `over` models are listed beside a base."""
    each: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    """Parameters that each model may have: our name, and what values become."""
    shared: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """mergekit's defaults that are not ours, under our names."""
    needed: tuple[str, ...] = ()
    """Parameters without which mergekit refuses a model."""
    notes: tuple[str, ...] = ()


def _same(value: Any) -> Any:
    return value


def _only(expected: Any, why: str) -> Change:
    def change(value: Any) -> Any:
        if value != expected:
            raise ValueError(f"{str(value)[:60].lower()} has no equal here: {why}")
        return None

    return change


_SPELLINGS = {
    **dict.fromkeys((True, 1, "1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys((False, 0, "0", "off", "f", "false", "n", "no"), False),
}
"""What mergekit, by pydantic, takes for true and false."""


def _switch(value: Any) -> bool:
    value = value.lower() if isinstance(value, str) else value
    if value not in _SPELLINGS:
        raise ValueError(f"{value!r} should be true or false")
    return _SPELLINGS[value]


def _choice(yes: str, no: str) -> Change:
    return lambda value: yes if _switch(value) else no


def _decimal(value: Any) -> Any:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{str(value)[:60]!r} should be a number")
    return value


def whole_number(value: Any) -> Any:
    value = _decimal(value)
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{value} should be a whole number")
    return int(value)


def share(value: Any) -> Any:
    """Of elements that are kept: above 1 mergekit keeps all, below 0 none."""
    return min(max(_decimal(value), 0), 1)


def _off(why: str) -> Change:
    def change(value: Any) -> None:
        if _switch(value):
            raise ValueError(f"true has no equal here: {why}")

    return change


_WEIGHT = {"weight": ("weight", _decimal)}

_DENSITY = {**_WEIGHT, "density": ("density", share)}

_LAMBDA = {"lambda": ("lambda", _decimal)}

_NORMALIZE = {"normalize": ("normalize", _choice("weight", "none"))}

_RESCALE = {"rescale": ("rescale", _choice("l1", "none"))}

_NO_NORMALIZE = {"normalize": ("", _off("divide the weights by their sum instead"))}

_NO_RESCALE = {"rescale": ("", _off("this method does not rescale what it keeps"))}

_RANDOM = (
    "which elements are dropped: mergekit draws from one stream of random numbers, in the order and on the device it happens to work; "
    "here they depend on `seed`, tensor and element alone, so the same recipe drops the same elements everywhere"
)

_SMALL = "of a tensor so small that density keeps no element, mergekit keeps the largest; here none of it is kept"

_EQUAL = "of elements of equal magnitude at a cut mergekit keeps any; here those with the lower index are the larger ones"

_ROUGH = "mergekit's divergences are sums in float32 of terms that cancel; of models that hardly differ it takes over other elements"

_CANCEL = "where directions cancel, as in a tensor that no model changed, mergekit stops; here the result is the weighted mean"

_ZERO = "where one of two tensors is all zeros the way is straight here; mergekit takes the angle between them to be a right one"

_TIES = "where the weighted sum at a position is exactly 0 its sign counts as +, as in mergekit"

KNOWN: dict[str, Known] = {
    "linear": Known("linear", "models", _WEIGHT, {"normalize": ("normalize", _switch)}, needed=("weight",)),
    "task_arithmetic": Known(
        "task_arithmetic", "deltas", {**_WEIGHT, "density": ("", _same)}, {**_LAMBDA, **_NO_NORMALIZE, **_NO_RESCALE}, needed=("weight",)
    ),
    "ties": Known(
        "ties", "deltas", _DENSITY, {**_LAMBDA, **_NORMALIZE, **_NO_RESCALE}, {"normalize": "weight"}, ("weight",), (_SMALL, _EQUAL, _TIES)
    ),
    "dare_linear": Known(
        "dare_linear", "deltas", _DENSITY, {**_LAMBDA, **_RESCALE, **_NO_NORMALIZE}, {"rescale": "l1"}, ("weight",), (_RANDOM,)
    ),
    "dare_ties": Known(
        "dare_ties", "deltas", _DENSITY, {**_LAMBDA, **_RESCALE, **_NORMALIZE}, {"rescale": "l1", "normalize": "none"}, ("weight",),
        (_RANDOM, _TIES),
    ),
    "della": Known(
        "della", "deltas", {**_DENSITY, "epsilon": ("epsilon", _decimal)}, {**_LAMBDA, **_RESCALE, **_NORMALIZE},
        {"rescale": "l1", "normalize": "weight"}, ("weight",), (_RANDOM, _TIES),
    ),
    "della_linear": Known(
        "della_linear", "deltas", {**_DENSITY, "epsilon": ("epsilon", _decimal)}, {**_LAMBDA, **_RESCALE, **_NO_NORMALIZE},
        {"rescale": "l1"}, ("weight",), (_RANDOM,),
    ),
    "breadcrumbs": Known(
        "breadcrumbs", "deltas", {**_DENSITY, "gamma": ("gamma", _decimal)}, {**_LAMBDA, **_NO_NORMALIZE, **_NO_RESCALE}, {}, ("weight",),
        (_EQUAL,),
    ),
    "breadcrumbs_ties": Known(
        "breadcrumbs_ties", "deltas", {**_DENSITY, "gamma": ("gamma", _decimal)}, {**_LAMBDA, **_NORMALIZE, **_NO_RESCALE},
        {"normalize": "none"}, ("weight",), (_EQUAL, _TIES),
    ),
    "model_stock": Known("model_stock", "deltas", {}, {"filter_wise": ("filter_wise", _switch)}),
    "sce": Known("sce", "deltas", {}, {"select_topk": ("select_topk", _decimal)}),
    "ram": Known("ram", "deltas", {}, {"epsilon": ("epsilon", _decimal)}),
    "ramplus_tl": Known(
        "ramplus_tl", "deltas", {}, {"epsilon": ("epsilon", _decimal), "r": ("r", _decimal), "alpha": ("alpha", _decimal)}
    ),
    "slerp": Known("slerp", "pair", {}, {"t": ("t", _decimal)}, notes=(_ZERO,)),
    "nearswap": Known("nearswap", "pair", {}, {"t": ("t", _decimal)}),
    "arcee_fusion": Known(
        "arcee_fusion", "pair",
        notes=("of large tensors mergekit takes quantiles of a random million elements; here they are exact", _ROUGH),
    ),
    "nuslerp": Known(
        "nuslerp", "two", _WEIGHT, {"nuslerp_flatten": ("nuslerp_flatten", _switch), "nuslerp_row_wise": ("nuslerp_row_wise", _switch)},
        needed=("weight",), notes=(_ZERO,),
    ),
    "multislerp": Known(
        "multislerp", "over", _WEIGHT,
        {"normalize_weights": ("normalize_weights", _switch), "eps": ("", _only(1e-8, "1e-8 is fixed"))}, needed=("weight",),
        notes=(_CANCEL,),
    ),
    "passthrough": Known("linear", "models", {"scale": ("weight", _decimal)}, given={"normalize": False}),
    "karcher": Known("karcher", "models", {}, {"max_iter": ("max_iter", whole_number), "tol": ("tol", _decimal)}),
}  # fmt: skip
