"""The methods there are, as plain values."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.methods import Method, all_methods, find_method, origin


def methods() -> list[dict[str, Any]]:
    """Every method there is, as plain values, ours first."""
    return [_card(each) for each in all_methods()]


def method(name: str) -> dict[str, Any]:
    """One method. Raises UsageError naming the nearest one when there is none of that name."""
    return _card(find_method(name))


def _card(card: Method) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "family": card.family,
        "formula": card.formula,
        "paper": card.paper,
        "scope": card.scope.value,
        "takes": card.takes,
        "parameters": [
            {"name": p.name, "meaning": p.meaning, "default": p.default, "range": p.range, "for_each": p.per_model} for p in card.parameters
        ],
        "notes": card.notes,
        "example": card.example.splitlines(),
        "package": origin(card),
    }
