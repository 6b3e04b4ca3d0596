"""Reductions that find sums of products over a tensor, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import Reduction

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block, TensorInfo

Gram = Sequence[Sequence[float]]
"""All scalar products of some vectors; symmetric."""


def gram_sweep(meaning: Callable[[Gram, TensorInfo], Any]) -> Reduction:
    """Finds what the scalar products of the terms, of deltas or of models that are merged as they are, mean for a tensor. Needs
    two blocks of scratch."""

    def collect(block: Block) -> Any:
        from paramdelta_dist.kernels.reductions import reducer

        one, two = block.scratch[:2]
        sums, reduce = [], reducer(one.device)
        for i, left in enumerate(block.terms):
            block.delta(left, one)
            sums.append(tuple(reduce.dot(one, one)))
            sums += [tuple(reduce.dot(one, block.delta(right, two))) for right in block.terms[i + 1 :]]
        return sums

    def finish(total: Any, info: TensorInfo) -> Any:
        from paramdelta_dist.kernels.reductions import ExactSum

        n = len(info.terms)
        found = [[0.0] * n for _ in range(n)]
        for (i, j), each in zip(combinations_with_replacement(range(n), 2), total, strict=True):
            found[i][j] = found[j][i] = ExactSum(*each).value
        return meaning(found, info)

    return Reduction(collect, add_sums, finish, exact=True, partial_bytes=lambda terms, _: 400 * terms * terms)


def add_sums(total: Any, more: Any) -> Any:
    """Two lists of `ExactSum`, as tuples, added."""
    from paramdelta_dist.kernels.reductions import ExactSum

    return [tuple(ExactSum(*one).plus(ExactSum(*two))) for one, two in zip(total, more, strict=True)]


def add_combination(block: Block, factors: Sequence[float]) -> None:
    """acc = base + Σ factor · delta; or Σ factor · model, where models are merged as they are. Needs one block of scratch."""
    if block.base is None:
        block.acc.zero_()
    for term, factor in zip(block.terms, factors, strict=True):
        block.acc.add_(block.delta(term, block.scratch[0]).mul_(factor))
