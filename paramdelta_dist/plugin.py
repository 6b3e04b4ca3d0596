"""What a package that brings a merge method imports: it stays while the rooms behind it move (docs/writing-a-method.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, BlockShape, Method, Parameter, Reduction, Roles, Scope

if TYPE_CHECKING:
    from paramdelta_dist.kernels import elementwise, random, reductions, selection, transcendental
    from paramdelta_dist.kernels.blocks import Block, Operand, TensorInfo

_KERNELS = ("elementwise", "random", "reductions", "selection", "transcendental")
"""Modules of arithmetic that gives the same bits on every device. They import torch, and so load when they are first used."""

__all__ = [
    "LAMBDA",
    "WEIGHT",
    "Block",
    "BlockShape",
    "Method",
    "Operand",
    "Parameter",
    "Reduction",
    "Roles",
    "Scope",
    "TensorInfo",
    "elementwise",
    "random",
    "reductions",
    "selection",
    "transcendental",
]


def __getattr__(name: str) -> Any:
    if name in _KERNELS:
        return import_module(f"paramdelta_dist.kernels.{name}")
    if name in ("Block", "Operand", "TensorInfo"):
        return getattr(import_module("paramdelta_dist.kernels.blocks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
