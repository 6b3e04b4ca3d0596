"""Sums of models and of deltas: linear merging, task arithmetic, extrapolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, BlockShape, Method, Parameter, Parameters, Roles, Scope

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block


def _no_sum(parameters: Parameters, terms: Sequence[Parameters]) -> str | None:
    if parameters["normalize"] and sum(term["weight"] for term in terms) == 0:
        return "the weights add up to 0, and their sum is what is divided by; change a weight, or give `normalize: false`"
    return None


def add_models(block: Block) -> None:
    """acc = Σ weight · model, divided by Σ weight with `normalize`."""
    acc, (part, *_) = block.acc.zero_(), block.scratch
    for term in block.terms:
        acc.add_(part.copy_(term.post).mul_(term.values["weight"]))
    if block.parameters["normalize"]:
        acc.div_(part.fill_(sum(term.values["weight"] for term in block.terms)))  # by a number, a GPU would multiply by its inverse


LINEAR = Method(
    name="linear",
    title="Linear: the weighted mean of models",
    family="sums",
    formula="Θ = Σ wᵢ Θᵢ / Σ wᵢ    (normalize: false: Σ wᵢ Θᵢ)",
    paper="https://arxiv.org/abs/2203.05482",
    scope=Scope.ELEMENT,
    roles=Roles.MODELS,
    parameters=(WEIGHT, Parameter("normalize", "whether to divide by the sum of the weights", default=True, kind=bool)),
    example="""\
method: linear
models:
  - {model: s3://models/chat, weight: 0.6}
  - {model: s3://models/code, weight: 0.4}
output: s3://models/soup
""",
    apply=add_models,
    check=_no_sum,
    blocks=BlockShape.ANY,
    scratch_blocks=1,
    identity_at={},
    symmetric=True,
)

TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    title="Task arithmetic: a multiple of the sum of weighted deltas",
    family="sums",
    formula="Θ = Θ_base + λ Σ wᵢ δᵢ,    δᵢ = Θ_post,i − Θ_base,i",
    paper="https://arxiv.org/abs/2212.04089",
    scope=Scope.ELEMENT,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, LAMBDA),
    example="""\
method: task_arithmetic
parameters: {lambda: 0.4}
base: s3://models/base
deltas:
  - {post: s3://models/chat}
  - {post: s3://models/toxic, weight: -0.5}
output: s3://models/polite
""",
    weights=lambda parameters, terms: [parameters["lambda"] * term["weight"] for term in terms],
    identity_at={},
    homogeneous=True,
    symmetric=True,
)

EXPO = Method(
    name="expo",
    title="ExPO: further along the way that alignment went",
    family="sums",
    formula="Θ = Θ_post + α (Θ_post − Θ_base)",
    paper="https://arxiv.org/abs/2404.16792",
    scope=Scope.ELEMENT,
    roles=Roles.DELTAS,
    parameters=(Parameter("alpha", "how much further, as a part of the way; negative goes back", default=0.3),),
    example="""\
method: expo
parameters: {alpha: 0.3}
base: s3://models/sft          # where preference training began
deltas:
  - post: s3://models/dpo      # where it ended
output: s3://models/dpo-further
""",
    max_models=1,
    weights=lambda parameters, terms: [1 + parameters["alpha"] for _ in terms],
    identity_at={"alpha": 0.0},
    homogeneous=True,
)
