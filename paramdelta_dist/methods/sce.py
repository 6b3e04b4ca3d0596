"""SCE: select by variance, weigh by energy, erase what the majority's sign is against (Wan et al. 2024, https://arxiv.org/abs/2408.07990)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.gram import add_sums
from paramdelta_dist.methods.shared.quantiles import find_ranks, float32_keys

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

TOPK = Parameter(
    "select_topk", "share of the elements that vary which is kept: those whose deltas differ most", default=1.0, minimum=0, maximum=1
)
LEAST = 1e-6
"""Energies, and sums of weights, below this count as none."""


def _keys(block: Block, ranking: int = 0) -> torch.Tensor:
    """Of the variance of each element over the deltas; by mean first and squares then."""
    mean, delta, total = block.scratch[:3]
    mean.zero_()
    for term in block.terms:
        mean.add_(block.delta(term, delta))
    mean.div_(total.fill_(len(block.terms)))  # by a number, a GPU would multiply by its inverse
    total.zero_()
    for term in block.terms:
        total.add_(block.delta(term, delta).sub_(mean).square_())
    return float32_keys(total.div_(mean.fill_(len(block.terms))))


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    energies = Reduction(_energies, add_sums, _weights, exact=True)
    if parameters["select_topk"] >= 1:
        return (energies,)
    varying = Reduction(lambda block: int((_keys(block) > 0).sum()), lambda total, more: total + more, exact=True)
    return (varying, *find_ranks(_keys, lambda info: [[int(info.statistics[0] * parameters["select_topk"])]], at=1), energies)


def _dropped(block: Block) -> torch.Tensor | None:
    """bool[n]: which elements are not selected; None where all are."""
    import torch

    if block.parameters["select_topk"] >= 1:
        return None
    ((cut,),) = block.statistics[3]
    selected = torch.empty(block.n, dtype=torch.bool, device=block.acc.device)
    cut.mask(_keys(block), block.first, selected)
    return selected.logical_not_()


def _energies(block: Block) -> Any:
    """Σ δ² of each delta over what is selected."""
    from paramdelta_dist.kernels.reductions import reducer

    dropped, sums = _dropped(block), []
    for term in block.terms:
        delta = block.delta(term, block.scratch[0])
        if dropped is not None:
            delta.masked_fill_(dropped, 0.0)
        sums.append(tuple(reducer(delta.device).dot(delta, delta)))
    return sums


def _weights(total: Any, info: TensorInfo) -> list[float]:
    from paramdelta_dist.kernels.reductions import ExactSum

    energies = [ExactSum(*each).value / max(info.elements, 1) for each in total]
    whole = sum(energies)
    return [energy / whole for energy in energies] if whole >= LEAST else [1 / len(energies)] * len(energies)


def _apply(block: Block) -> None:
    import torch

    dropped = _dropped(block)
    delta, part, total, weights, mixed = block.scratch[:5]
    total.zero_()
    for term in block.terms:
        total.add_(block.delta(term, delta))
    sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    weights.zero_()
    mixed.zero_()
    for term, share in zip(block.terms, block.statistics[-1], strict=True):
        agreeing = block.delta(term, delta).mul_(sign).clamp_(min=0)
        weights.add_(part.copy_(agreeing > 0).mul_(share))
        mixed.add_(agreeing.mul_(share))
    mixed.mul_(sign).div_(weights.clamp_(min=LEAST))
    if dropped is not None:
        mixed.masked_fill_(dropped, 0.0)
    block.acc.add_(mixed)


SCE = Method(
    name="sce",
    title="SCE: select, calculate, erase",
    family="consensus",
    formula="where the deltas vary most: Θ = Θ_base + Σ wᵢ δᵢ / Σ wᵢ over deltas with the sign of Σ δᵢ, wᵢ the share of Σ δᵢ² in a tensor",
    paper="https://arxiv.org/abs/2408.07990",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(TOPK,),
    example="""\
method: sce
base: s3://models/Mistral-7B
deltas:
  - post: s3://models/Mistral-7B-math
  - post: s3://models/Mistral-7B-code
parameters:
  select_topk: 0.1
output: s3://models/Mistral-7B-math-code
""",
    notes="A tensor whose deltas have a mean square of less than 10⁻⁶ in all weighs them equally, as in mergekit.",
    apply=_apply,
    reductions=_reductions,
    scratch_blocks=5,
    temporary_blocks=3,
    compute_float64=True,
    symmetric=True,
)
