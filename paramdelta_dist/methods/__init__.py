"""The merge methods, ours as a literal list, others by an entry point (docs/writing-a-method.md). Knows no file and no plan."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

from paramdelta_dist.errors import UsageError
from paramdelta_dist.methods.arcee_fusion import ARCEE_FUSION
from paramdelta_dist.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from paramdelta_dist.methods.card import BlockShape, Method, Parameter, Reduction, Roles, Scope
from paramdelta_dist.methods.dare import DARE_LINEAR, DARE_TIES
from paramdelta_dist.methods.della import DELLA, DELLA_LINEAR
from paramdelta_dist.methods.linear import EXPO, LINEAR, TASK_ARITHMETIC
from paramdelta_dist.methods.model_stock import MODEL_STOCK
from paramdelta_dist.methods.nearswap import NEARSWAP
from paramdelta_dist.methods.paramdelta import PARAMDELTA
from paramdelta_dist.methods.ram import RAM, RAMPLUS_TL
from paramdelta_dist.methods.sce import SCE
from paramdelta_dist.methods.spherical import KARCHER, MULTISLERP, NUSLERP, SLERP
from paramdelta_dist.methods.ties import MAGNITUDE, TIES

METHODS = (
    PARAMDELTA,
    LINEAR,
    TASK_ARITHMETIC,
    EXPO,
    TIES,
    MAGNITUDE,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    SCE,
    RAM,
    RAMPLUS_TL,
    SLERP,
    NUSLERP,
    MULTISLERP,
    KARCHER,
    MODEL_STOCK,
    NEARSWAP,
    ARCEE_FUSION,
)
ENTRY_POINTS = "paramdelta_dist.methods"
"""Group of entry points that name a `Method`; the name of an entry point is the method's."""

__all__ = ["ENTRY_POINTS", "METHODS", "BlockShape", "Method", "Parameter", "Reduction", "Roles", "Scope", "all_methods", "find_method"]


Blocks, Sweep = BlockShape, Reduction
"""As they were called up to version 0.1."""


def find_method(name: str) -> Method:
    """The method of that name. Raises UsageError naming the nearest one, or what is wrong with the package that has it."""
    for method in METHODS:
        if method.name == name:
            return method
    if name in _others():
        return _loaded(name)
    known = [*(method.name for method in METHODS), *_others()]
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no method {name!r}{hint} (methods: {', '.join(known)})")


def all_methods() -> tuple[Method, ...]:
    """Ours and those of other packages. Raises UsageError as `find_method` does."""
    return (*METHODS, *(_loaded(name) for name in _others()))


def origin(method: Method) -> str | None:
    """The package that brought a method; None for ours."""
    return None if method in METHODS else _others()[method.name][1]


@cache
def _others() -> dict[str, tuple[str, str]]:
    """Where methods of other packages are and whose they are, by name, sorted; a name of ours stays ours."""
    ours = {method.name for method in METHODS}
    found = sorted((point.name, point.value, point.dist.name if point.dist else "?") for point in entry_points(group=ENTRY_POINTS))
    return {name: (value, package) for name, value, package in found if name not in ours}


@cache
def _loaded(name: str) -> Method:
    value, package = _others()[name]
    (point, *_) = entry_points(group=ENTRY_POINTS, name=name)
    try:
        method = point.load()
    except Exception as error:  # whatever a stranger's module does at import
        raise UsageError(f"method {name!r} of package {package} ({value}) does not load: {type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise UsageError(f"method {name!r} of package {package}: {value} is not a paramdelta_dist.methods.Method")
    if method.name != name:
        raise UsageError(f"method {name!r} of package {package}: its card says {method.name!r}; both names must be the same")
    return method


def _by_name(method: Method) -> tuple[Callable[[str], Method], tuple[str]]:
    return find_method, (method.name,)


copyreg.pickle(Method, _by_name)  # a card travels as its name: functions of other packages need not be importable by theirs
