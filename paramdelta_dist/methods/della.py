"""DELLA: DARE that keeps large elements of a row more often than small ones (Deep et al. 2024, https://arxiv.org/abs/2406.11617)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, BlockShape, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.dare import DENSITY
from paramdelta_dist.methods.shared.sparsify import NORMALIZE, SEED, add_all, stretch, with_elected_sign

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, Operand

EPSILON = Parameter(
    "epsilon",
    "how far the probability of the largest and the least element of a row is from density",
    0.15,
    minimum=0,
    maximum=0.5,
    per_model=True,
)
RESCALE = Parameter(
    "rescale",
    "what makes up for dropped elements: each kept one over its own probability (inverse_q), the tensor's sum of magnitudes (l1), nothing",
    default="inverse_q",
    kind=str,
    choices=("inverse_q", "l1", "none"),
)


def _probabilities(block: Block, term: Operand, delta: torch.Tensor) -> torch.Tensor:
    """float64[n]: of each element of delta[n] to be kept, by its rank in its row."""
    import torch

    density, epsilon, columns = term.values["density"], term.values["epsilon"], block.tensor.columns
    found = torch.empty(block.n, dtype=torch.float64, device=delta.device)
    step = 2 * epsilon / (columns - 1) if columns > 1 else 0.0
    by_rank = torch.arange(columns, dtype=torch.float64, device=delta.device).mul_(-step).add_(density + epsilon if step else density)
    for row, out in zip(block.rows(delta), block.rows(found), strict=True):
        out[torch.sort(row.abs(), descending=True, stable=True).indices] = by_rank
    return found


def _thinned(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The delta without what is dropped, its kept elements times what makes up for that."""
    return _rescaled(block, number, out, block.parameters["rescale"])


def _kept(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The same with nothing to make up for it."""
    return _rescaled(block, number, out, "none")


def _rescaled(block: Block, number: int, out: torch.Tensor, rescale: str) -> torch.Tensor:
    import torch

    from paramdelta_dist.kernels.random import philox, stream_key

    term = block.terms[number]
    block.delta(term, out)
    if term.values["density"] >= 1:
        return out
    if term.values["density"] <= 0:
        return out.zero_()
    probabilities = _probabilities(block, term, out)
    uniforms = torch.empty_like(probabilities)
    key = stream_key(block.parameters["seed"], "della", str(term.position), block.tensor.name)
    philox(out.device).uniforms(key, block.first, uniforms)
    out.masked_fill_(uniforms >= probabilities, 0.0)
    if rescale == "inverse_q":
        return out.div_(probabilities)
    return out.mul_(block.statistics[0][number]) if rescale == "l1" else out


def _beyond(parameters: Parameters, terms: Sequence[Parameters]) -> str | None:
    for density, epsilon in ((term["density"], term["epsilon"]) for term in terms):
        if 0 < density < 1 and not epsilon < density < 1 - epsilon:
            return f"density {density:g} ± epsilon {epsilon:g} are probabilities and should both lie between 0 and 1; give less epsilon"
    return None


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    return (stretch(_kept),) if parameters["rescale"] == "l1" else ()


_RECIPE = """\
method: {name}
base: s3://models/Mistral-7B
deltas:
  - post: s3://models/Mistral-7B-math
    density: 0.4
  - post: s3://models/Mistral-7B-code
    density: 0.4
parameters:
  epsilon: 0.15
output: s3://models/Mistral-7B-math-code
"""
_NOTES = (
    "mergekit stretches by one factor a tensor, which is `rescale: l1` here; the paper's inverse_q keeps every element's expectation. "
    "A tensor of one dimension is one row; of a row of one element, density is the probability."
)

DELLA_LINEAR = Method(
    name="della_linear",
    title="DELLA: drop by magnitude, rescale, add",
    family="thinned deltas",
    formula="kept with probability q = density − ε + 2ε (r − 1)/(n − 1), r its rank by rising |δ| in its row of n; Θ = Θ_base + λ Σ wᵢ δ̂ᵢ",
    paper="https://arxiv.org/abs/2406.11617",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, DENSITY, EPSILON, RESCALE, LAMBDA, SEED),
    example=_RECIPE.format(name="della_linear"),
    notes=_NOTES,
    apply=add_all(_thinned),
    reductions=_reductions,
    check=_beyond,
    blocks=BlockShape.ROWS,
    scratch_blocks=2,
    temporary_blocks=4,
    compute_float64=True,
    identity_at={"density": 1.0},
    homogeneous=True,
)

DELLA = with_elected_sign(
    DELLA_LINEAR,
    _thinned,
    name="della",
    title="DELLA: drop by magnitude, rescale, and add what the majority's sign agrees with",
    formula="kept with probability q = density − ε + 2ε (r − 1)/(n − 1), r its rank by rising |δ| in its row of n; then as ties",
    example=_RECIPE.format(name="della"),
    normalize=replace(NORMALIZE, default="weight"),
)
