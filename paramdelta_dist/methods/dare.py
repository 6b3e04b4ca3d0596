"""DARE: deltas of which most elements are dropped at random and the rest stand for all (Yu et al. 2023, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.sparsify import SEED, add_all, stretch, with_elected_sign

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, Operand, TensorInfo

DENSITY = Parameter("density", "share of elements that are kept, 1 − p", default=1.0, minimum=0, maximum=1, per_model=True)
DROPPED = Parameter("k", "factor that dropped elements stay with; 0 drops them, 1 changes nothing", default=0.0)
RESCALE = Parameter(
    "rescale",
    "what makes up for dropped elements: the expectation (inverse_p), the tensor's own sum of magnitudes (l1), nothing (none)",
    default="inverse_p",
    kind=str,
    choices=("inverse_p", "l1", "none"),
)


def _keep(block: Block, term: Operand) -> torch.Tensor:
    """bool[n]: which elements of a delta are kept; the same for dare_linear and dare_ties."""
    import torch

    from paramdelta_dist.kernels.random import philox, stream_key

    keep = torch.empty(block.n, dtype=torch.bool, device=block.acc.device)
    key = stream_key(block.parameters["seed"], "dare", str(term.position), block.tensor.name)
    philox(keep.device).keep(key, block.first, keep, term.values["density"])
    return keep


def _thinned(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The delta, its kept elements times what makes up for the dropped ones, and these times k."""
    import torch

    term = block.terms[number]
    block.delta(term, out)
    density, k = term.values["density"], block.parameters["k"]
    if density >= 1 or k == 1:
        return out
    if density <= 0:
        return out.mul_(k) if k else out.zero_()
    keep, factor = _keep(block, term), 1.0
    if block.parameters["rescale"] == "inverse_p":
        factor = (1 - k * (1 - density)) / density
    elif block.parameters["rescale"] == "l1":
        factor = block.statistics[0][number]
    if k:
        dropped = out * k
        return torch.where(keep, out.mul_(factor), dropped, out=out)
    return out.masked_fill_(keep.logical_not_(), 0.0).mul_(factor)


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    return (stretch(_kept, _factor),) if parameters["rescale"] == "l1" else ()


def _kept(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The delta with 0 for what is dropped, and nothing to make up for it."""
    term = block.terms[number]
    block.delta(term, out)
    if term.values["density"] <= 0:
        return out.zero_()
    return out.masked_fill_(_keep(block, term).logical_not_(), 0.0) if term.values["density"] < 1 else out


def _factor(whole: float, kept: float, info: TensorInfo) -> float:
    """Of kept elements, so that with the dropped ones times k the sum of magnitudes is what it was."""
    k: float = abs(info.parameters["k"])
    return (whole - k * (whole - kept)) / kept


_RECIPE = """\
method: {name}
base: s3://models/Mistral-7B
deltas:
  - post: s3://models/Mistral-7B-math
    density: 0.3
  - post: s3://models/Mistral-7B-code
    density: 0.3
parameters:
  seed: 7
output: s3://models/Mistral-7B-math-code
"""
_NOTES = (
    "With k other than 0 this is the (p, k) extension of https://arxiv.org/abs/2410.13841. mergekit's `rescale: true` is `rescale: l1` "
    "here, and its masks differ: ours depend on seed, delta, tensor and element alone."
)

DARE_LINEAR = Method(
    name="dare_linear",
    title="DARE: drop at random, rescale, add",
    family="thinned deltas",
    formula="Θ = Θ_base + λ Σ wᵢ (Mᵢ · (1 − k p)/(1 − p) + (1 − Mᵢ) · k) δᵢ, with Mᵢ = 1 at random for a share 1 − p = density of elements",
    paper="https://arxiv.org/abs/2311.03099",
    scope=Scope.TENSOR,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, DENSITY, RESCALE, DROPPED, LAMBDA, SEED),
    example=_RECIPE.format(name="dare_linear"),
    notes=_NOTES,
    apply=add_all(_thinned),
    reductions=_reductions,
    scratch_blocks=2,
    temporary_blocks=3,
    compute_float64=True,
    identity_at={"density": 1.0},
    homogeneous=True,
)

DARE_TIES = with_elected_sign(
    DARE_LINEAR, _thinned, name="dare_ties", title="DARE with the majority's sign", example=_RECIPE.format(name="dare_ties")
)
