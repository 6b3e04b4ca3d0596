"""Model Stock: between a base and the mean of models grown from it, by how far they agree (Jang et al. 2024, https://arxiv.org/abs/2403.19522)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import BlockShape, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.gram import Gram, add_combination, gram_sweep

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

FILTER_WISE = Parameter("filter_wise", "whether each row decides for itself how far, not each tensor", default=False, kind=bool)
LEAST_NORM = 1e-6
"""A product of norms below this counts as this, so that deltas which are almost nothing agree in nothing."""


def _share(cosine: float, count: int) -> float:
    """How far from the base to the mean of `count` models."""
    below = 1 + (count - 1) * cosine
    return count * cosine / below if abs(below) >= LEAST_NORM else 0.0


def _of_tensor(gram: Gram, info: TensorInfo) -> list[float]:
    """The factor of each delta."""
    count = len(gram)
    norms = [gram[i][i] ** 0.5 for i in range(count)]
    cosines = [max(-1.0, min(1.0, gram[i][j] / max(norms[i] * norms[j], LEAST_NORM))) for i, j in combinations(range(count), 2)]
    return [_share(sum(cosines) / len(cosines), count) / count] * count


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    return () if parameters["filter_wise"] else (gram_sweep(_of_tensor),)


def _of_rows(block: Block) -> torch.Tensor:
    """float64[rows]: the factor of each delta in each row."""
    import torch

    from paramdelta_dist.kernels.reductions import add_halves

    one, two = block.scratch[:2]

    def products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return add_halves(block.rows(left).double() * block.rows(right))

    norms = [products(delta, delta).sqrt_() for delta in (block.delta(term, one) for term in block.terms)]
    total, count = torch.zeros_like(norms[0]), len(block.terms)
    for i, j in combinations(range(count), 2):
        dots = products(block.delta(block.terms[i], one), block.delta(block.terms[j], two))
        total += dots.div_((norms[i] * norms[j]).clamp_(min=LEAST_NORM)).clamp_(-1, 1)
    cosine = total.div_(torch.full_like(total, count * (count - 1) // 2))
    below = (cosine * (count - 1)).add_(1)
    return torch.where(below.abs() < LEAST_NORM, 0.0, cosine / below)


def _apply(block: Block) -> None:
    if not block.parameters["filter_wise"]:
        add_combination(block, block.statistics[0])
        return
    factors = _of_rows(block).to(block.acc.dtype).unsqueeze(-1)
    for term in block.terms:
        delta = block.delta(term, block.scratch[0])
        block.rows(delta).mul_(factors)
        block.acc.add_(delta)


MODEL_STOCK = Method(
    name="model_stock",
    title="Model Stock: how far to follow several fine-tunes that differ by chance",
    family="directions",
    formula="Θ = Θ_base + t · mean(δᵢ), t = N c/(1 + (N − 1) c), c the mean cosine between two of the N deltas in a tensor",
    paper="https://arxiv.org/abs/2403.19522",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(FILTER_WISE,),
    example="""\
method: model_stock
base: s3://models/Mistral-7B
deltas:
  - post: s3://models/Mistral-7B-run-1
  - post: s3://models/Mistral-7B-run-2
  - post: s3://models/Mistral-7B-run-3
output: s3://models/Mistral-7B-stock
""",
    min_models=2,
    notes="Deltas that point away from each other (c < 0) give t < 0, as the formula and mergekit have it.",
    apply=_apply,
    reductions=_reductions,
    blocks=BlockShape.ROWS,
    scratch_blocks=2,
    temporary_blocks=13,
    homogeneous=True,
    symmetric=True,
)
