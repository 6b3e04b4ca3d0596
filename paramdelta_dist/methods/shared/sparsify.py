"""Sparsification that methods share: adding up deltas that were thinned out, and stretching them to make up for what was dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import LAMBDA, Method, Parameter, Reduction
from paramdelta_dist.methods.shared.gram import add_sums

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

SEED = Parameter("seed", "which random numbers are drawn", default=0, kind=int, minimum=0, maximum=2**63 - 1)
NORMALIZE = Parameter(
    "normalize",
    "divide by how many deltas agree in sign (count), by their weights (weight), or not at all (none)",
    default="none",
    kind=str,
    choices=("none", "count", "weight"),
)
TOO_SMALL = 1e-7
"""A tensor whose sum of magnitudes is below this is not stretched."""

Thin = Callable[["Block", int, "torch.Tensor"], "torch.Tensor"]
"""`thin(block, number, out)` → what is left of the delta of `block.terms[number]`, unweighted, written to `out`[n]."""


def add_all(thin: Thin) -> Callable[[Block], None]:
    """What applies base + λ Σ wᵢ δ̂ᵢ, in the order of the terms. Needs two blocks of scratch."""

    def apply(block: Block) -> None:
        delta, total = block.scratch[:2]
        total.zero_()
        for number, term in enumerate(block.terms):
            total.add_(thin(block, number, delta).mul_(term.values["weight"]))
        block.acc.add_(total.mul_(block.parameters["lambda"]))

    return apply


def add_agreeing(thin: Thin) -> Callable[[Block], None]:
    """The same with those wᵢ δ̂ᵢ alone that have the sign of their sum, which is + where the sum is 0, divided as NORMALIZE says.
    Needs six blocks of scratch."""

    def apply(block: Block) -> None:
        import torch

        normalize, factor = block.parameters["normalize"], block.parameters["lambda"]
        delta, part, above, below, shares_above, shares_below = block.scratch[:6]
        for total in (above, below, shares_above, shares_below):
            total.zero_()
        for number, term in enumerate(block.terms):
            weight = term.values["weight"]
            thin(block, number, delta).mul_(weight)
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

    return apply


def with_elected_sign(
    linear: Method, thin: Thin, *, name: str, title: str, example: str, formula: str | None = None, normalize: Parameter = NORMALIZE
) -> Method:
    """The card of a method that thins deltas out as `linear` does by `thin`, and adds at each element those that agree in sign."""
    place = linear.parameters.index(LAMBDA)
    return replace(
        linear,
        name=name,
        title=title,
        formula=formula or f"δ̂ᵢ as {linear.name} makes them; at each element those are added whose wᵢ δ̂ᵢ has the sign of Σ wᵢ δ̂ᵢ",
        parameters=(*linear.parameters[:place], normalize, *linear.parameters[place:]),
        example=example,
        apply=add_agreeing(thin),
        scratch_blocks=6,
    )


def _as_before(whole: float, kept: float, info: TensorInfo) -> float:
    return whole / kept


def stretch(thin: Thin, factor: Callable[[float, float, TensorInfo], float] = _as_before) -> Reduction:
    """Finds what to multiply each thinned delta of a tensor by: `factor(whole, kept, info)`, given the sum of its magnitudes
    before and after. Unless told, so that the second becomes the first. Needs a block of scratch."""

    def collect(block: Block) -> Any:
        from paramdelta_dist.kernels.reductions import reducer

        sums, reduce, delta = [], reducer(block.acc.device), block.scratch[0]
        for number, term in enumerate(block.terms):
            sums.append(tuple(reduce.absolute(block.delta(term, delta))))
            sums.append(tuple(reduce.absolute(thin(block, number, delta))))
        return sums

    def finish(total: Any, info: TensorInfo) -> list[float]:
        from paramdelta_dist.kernels.reductions import ExactSum

        values = [ExactSum(*each).value for each in total]
        pairs = zip(values[::2], values[1::2], strict=True)
        return [factor(whole, kept, info) if min(whole, kept) >= TOO_SMALL else 1.0 for whole, kept in pairs]

    return Reduction(collect, add_sums, finish, exact=True)
