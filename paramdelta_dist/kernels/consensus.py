"""Adding deltas that were thinned out: all of them, or at each element those whose sign has the majority."""

from __future__ import annotations

from collections.abc import Callable

import torch

from paramdelta_dist.kernels.blocks import Block

Prepare = Callable[[int, torch.Tensor], torch.Tensor]
"""`prepare(number, out)` → what is left of the delta of `block.terms[number]`, unweighted, written to `out`[n]."""
SCRATCH = 6
"""Blocks that `add_agreeing` needs besides the accumulator; `add_all` needs two."""


def add_all(block: Block, prepare: Prepare, factor: float) -> None:
    """acc += factor · Σ weight · prepared delta, in the order of the terms."""
    delta, total = block.scratch[:2]
    total.zero_()
    for number, term in enumerate(block.terms):
        total.add_(prepare(number, delta).mul_(term.values["weight"]))
    block.acc.add_(total.mul_(factor))


def add_agreeing(block: Block, prepare: Prepare, normalize: str, factor: float) -> None:
    """The same with those weighted deltas alone whose sign is that of their sum, which is + where the sum is 0.

    `normalize`: "none"; or divided by "count", how many agree; or by "weight", the sum of their weights.
    """
    delta, part, above, below, shares_above, shares_below = block.scratch[:SCRATCH]
    for total in (above, below, shares_above, shares_below):
        total.zero_()
    for number, term in enumerate(block.terms):
        weight = term.values["weight"]
        prepare(number, delta).mul_(weight)
        above.add_(torch.clamp(delta, min=0, out=part))
        below.add_(torch.clamp(delta, max=0, out=part))
        if normalize != "none":
            share = weight if normalize == "weight" else 1.0
            shares_above.add_(part.copy_(delta > 0).mul_(share))
            shares_below.add_(part.copy_(delta < 0).mul_(share))
    negative = torch.add(above, below, out=part) < 0
    torch.where(negative, below, above, out=above)
    if normalize != "none":
        torch.where(negative, shares_below, shares_above, out=shares_above)
        above.div_(shares_above.masked_fill_(shares_above == 0, 1.0))
    block.acc.add_(above.mul_(factor))
