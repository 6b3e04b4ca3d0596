"""The merge methods. The list is literal: a method that is not named here does not exist."""

from difflib import get_close_matches

from paramdelta_dist.errors import UsageError
from paramdelta_dist.methods.card import Method, Scope
from paramdelta_dist.methods.paramdelta import PARAMDELTA

METHODS = (PARAMDELTA,)

__all__ = ["METHODS", "Method", "Scope", "find_method"]


def find_method(name: str) -> Method:
    """The method of that name. Raises UsageError naming the nearest one."""
    by_name = {method.name: method for method in METHODS}
    if name not in by_name:
        near = get_close_matches(name, by_name, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no method {name!r}{hint} (methods: {', '.join(by_name)})")
    return by_name[name]
