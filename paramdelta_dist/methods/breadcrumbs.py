"""Model Breadcrumbs: deltas without their largest and their least elements (Davari & Belilovsky 2023, https://arxiv.org/abs/2312.06795)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.quantiles import delta_keys, find_ranks, float32_keys
from paramdelta_dist.methods.shared.sparsify import add_all, with_elected_sign

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

DENSITY = Parameter("density", "share of elements that are kept", default=1.0, minimum=0, maximum=1, per_model=True)
GAMMA = Parameter(
    "gamma", "share of elements, the largest, that are not; less where density needs them", 0.01, minimum=0, maximum=1, per_model=True
)


def _ranks(info: TensorInfo) -> list[list[int]]:
    """Of each delta: where what is kept begins and ends in the order of magnitudes."""
    found, n = [], info.elements
    for values in info.terms:
        kept = int(values["density"] * n)
        largest = min(int(values["gamma"] * n), n - kept)
        found.append([largest, largest + kept])
    return found


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    return () if all(term["density"] == 1 for term in terms) else find_ranks(delta_keys, _ranks)


def _between(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The delta without what lies outside its two cuts."""
    import torch

    block.delta(block.terms[number], out)
    if not block.statistics:
        return out
    begin, end = block.statistics[2][number]
    keys = float32_keys(out)
    kept, larger = (torch.empty(block.n, dtype=torch.bool, device=out.device) for _ in range(2))
    end.mask(keys, block.first, kept)
    begin.mask(keys, block.first, larger)
    return out.masked_fill_(kept.logical_not_().logical_or_(larger), 0.0)


_RECIPE = """\
method: {name}
base: s3://models/Mistral-7B
deltas:
  - post: s3://models/Mistral-7B-math
    density: 0.9
  - post: s3://models/Mistral-7B-code
    density: 0.9
parameters:
  gamma: 0.01
output: s3://models/Mistral-7B-math-code
"""
_NOTES = (
    "As mergekit does: by whole tensors; the authors' code takes each row by itself. Of equal magnitudes those with the lower index come "
    "first; in mergekit any."
)

BREADCRUMBS = Method(
    name="breadcrumbs",
    title="Model Breadcrumbs: drop outliers and what is small, add",
    family="thinned deltas",
    formula="of n elements by falling magnitude the first ⌊γ n⌋ are dropped, the next ⌊density · n⌋ kept; Θ = Θ_base + λ Σ wᵢ δ̂ᵢ",
    paper="https://arxiv.org/abs/2312.06795",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, DENSITY, GAMMA, LAMBDA),
    example=_RECIPE.format(name="breadcrumbs"),
    notes=_NOTES,
    apply=add_all(_between),
    reductions=_reductions,
    scratch_blocks=2,
    temporary_blocks=3,
    compute_float64=True,
    identity_at={"density": 1.0},
    homogeneous=True,
    symmetric=True,
)

BREADCRUMBS_TIES = with_elected_sign(
    BREADCRUMBS,
    _between,
    name="breadcrumbs_ties",
    title="Model Breadcrumbs with the majority's sign",
    example=_RECIPE.format(name="breadcrumbs_ties"),
)
