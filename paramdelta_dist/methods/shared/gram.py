"""Sweeps that find sums of products over a tensor, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import Sweep

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block, Subject

Gram = Sequence[Sequence[float]]
"""All scalar products of some vectors; symmetric."""


def gram_sweep(meaning: Callable[[Gram, Subject], Any]) -> Sweep:
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

    def finish(total: Any, subject: Subject) -> Any:
        from paramdelta_dist.kernels.reductions import Sum

        n = len(subject.terms)
        found = [[0.0] * n for _ in range(n)]
        for (i, j), each in zip(combinations_with_replacement(range(n), 2), total, strict=True):
            found[i][j] = found[j][i] = Sum(*each).value
        return meaning(found, subject)

    return Sweep(collect, add_sums, finish, exact=True, partial_bytes=lambda terms, _: 400 * terms * terms)


def add_sums(total: Any, more: Any) -> Any:
    """Two lists of `Sum`, as tuples, added."""
    from paramdelta_dist.kernels.reductions import Sum

    return [tuple(Sum(*one).plus(Sum(*two))) for one, two in zip(total, more, strict=True)]


def add_combination(block: Block, factors: Sequence[float]) -> None:
    """acc = base + Σ factor · delta; or Σ factor · model, where models are merged as they are. Needs one block of scratch."""
    if block.base is None:
        block.acc.zero_()
    for term, factor in zip(block.terms, factors, strict=True):
        block.acc.add_(block.delta(term, block.scratch[0]).mul_(factor))
