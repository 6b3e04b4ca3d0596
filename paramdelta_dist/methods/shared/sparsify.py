"""What methods that thin deltas out share: how what is left is added up, and how it is stretched to make up for what was dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import Parameter, Reduction
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
    """What applies base + λ Σ wᵢ δ̂ᵢ. Needs two blocks of scratch."""

    def apply(block: Block) -> None:
        from paramdelta_dist.kernels.consensus import add_all

        add_all(block, lambda number, out: thin(block, number, out), block.parameters["lambda"])

    return apply


def add_agreeing(thin: Thin) -> Callable[[Block], None]:
    """The same with those wᵢ δ̂ᵢ alone that have the sign of their sum, divided as NORMALIZE says. Needs six blocks of scratch."""

    def apply(block: Block) -> None:
        from paramdelta_dist.kernels.consensus import add_agreeing

        normalize, factor = block.parameters["normalize"], block.parameters["lambda"]
        add_agreeing(block, lambda number, out: thin(block, number, out), normalize, factor)

    return apply


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
