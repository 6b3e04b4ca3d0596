"""Reinforced Agent Merging: what one delta alone changed is taken whole, what several changed is averaged (https://arxiv.org/abs/2601.13572)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import BlockShape, Method, Parameter, Parameters, Reduction, Roles, Scope

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

EPSILON = Parameter("epsilon", "a delta of this magnitude or less is no change", default=1e-5, minimum=0)


def _changed(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """bool[n]: what a delta, written to `out`, changed."""
    unchanged: torch.Tensor = block.delta(block.terms[number], out).abs() <= block.parameters["epsilon"]
    return unchanged.logical_not_()  # so that NaN is a change


def _count(block: Block, delta: torch.Tensor, many: torch.Tensor) -> torch.Tensor:
    """How many deltas changed each element."""
    many.zero_()
    for number in range(len(block.terms)):
        many.add_(_changed(block, number, delta))
    return many


def _mean(block: Block) -> None:
    _add(block, [1.0] * len(block.terms))


def _reinforced(block: Block) -> None:
    _add(block, block.statistics[0])


def _add(block: Block, factors: Sequence[float]) -> None:
    """acc += the mean of what changed an element; times the delta's factor, where that is one alone."""
    delta, many, total, factor = block.scratch[:4]
    for out in (many, total, factor):
        out.zero_()
    for number, own in enumerate(factors):
        changed = _changed(block, number, delta)
        total.add_(delta.masked_fill_(~changed, 0.0))
        many.add_(changed)
        factor.masked_fill_(changed, own)
    factor.masked_fill_(many != 1, 1.0)
    block.acc.add_(total.div_(many.clamp_(min=1)).mul_(factor))


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    def counts(block: Block) -> Any:
        delta, many = block.scratch[:2]
        _count(block, delta, many)
        found = []
        for number in range(len(block.terms)):
            changed = _changed(block, number, delta)
            found.append((int((changed & (many > 1)).sum()), int((changed & (many == 1)).sum())))
        return found

    def add(total: Any, more: Any) -> Any:
        return [(one[0] + two[0], one[1] + two[1]) for one, two in zip(total, more, strict=True)]

    def factors(total: Any, info: TensorInfo) -> list[float]:
        r, alpha, epsilon = (info.parameters[name] for name in ("r", "alpha", "epsilon"))
        return [1 + r * min(shared / max(alone, epsilon or 1), alpha) for shared, alone in total]

    return (Reduction(counts, add, factors, exact=True),)


_RECIPE = """\
method: {name}
base: s3://models/Qwen-7B
deltas:
  - post: s3://models/Qwen-7B-agent-search
  - post: s3://models/Qwen-7B-agent-code
output: s3://models/Qwen-7B-agents
"""

RAM = Method(
    name="ram",
    title="RAM: whole where one delta changed something, averaged where several did",
    family="consensus",
    formula="Θ = Θ_base + Σ δᵢ / count, over deltas with |δᵢ| > ε at an element",
    paper="https://arxiv.org/abs/2601.13572",
    scope=Scope.ELEMENT,
    roles=Roles.DELTAS,
    parameters=(EPSILON,),
    example=_RECIPE.format(name="ram"),
    apply=_mean,
    blocks=BlockShape.ANY,
    scratch_blocks=4,
    temporary_blocks=2,
    compute_float64=True,
    identity_at={"epsilon": 0.0},
    symmetric=True,
)

RAMPLUS_TL = Method(
    name="ramplus_tl",
    title="RAM+: what one delta alone changed counts more, the more it shares with others",
    family="consensus",
    formula="as ram, but a lone δᵢ times 1 + r · min(shared/alone, α), by how many elements of a tensor δᵢ changed with others and alone",
    paper="https://arxiv.org/abs/2601.13572",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(
        EPSILON,
        Parameter("r", "how much more", default=0.1, minimum=0),
        Parameter("alpha", "bound of shared/alone", default=0.2, minimum=0),
    ),
    example=_RECIPE.format(name="ramplus_tl"),
    notes="Counts are of each tensor, as in mergekit; in the paper they are of the whole model.",
    apply=_reinforced,
    reductions=_reductions,
    scratch_blocks=4,
    temporary_blocks=2,
    compute_float64=True,
    identity_at={"epsilon": 0.0},
    symmetric=True,
)
