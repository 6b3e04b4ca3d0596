"""Merging along arcs between directions: slerp, nuslerp, multislerp and the Karcher mean.

What these methods compute lies in the span of the models, or of their deltas: so all of it follows from their scalar
products, which one reduction finds, and the result is a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import WEIGHT, BlockShape, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.gram import Gram, add_combination, gram_sweep

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo


def _arc(t: float, gram: Gram, linear_from: float) -> tuple[float, float]:
    """Factors of two vectors with these scalar products, t of the way along the arc between their directions; on a straight
    line where the cosine's magnitude is above `linear_from`, or a vector is zero."""
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    cosine = max(-1.0, min(1.0, gram[0][1] / norms)) if norms > 0 else 1.0
    if abs(cosine) > linear_from:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


SLERP_LINEAR = 0.9995
NUSLERP_LINEAR = 1 - 1e-15


def _combination(
    factors: Callable[[Gram, TensorInfo], Sequence[float]],
) -> Callable[[Parameters, Sequence[Parameters]], tuple[Reduction, ...]]:
    def reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
        return (gram_sweep(lambda gram, info: list(factors(gram, info))),)

    return reductions


def _combine(block: Block) -> None:
    add_combination(block, block.statistics[0])


# nuslerp

FLATTEN = Parameter("nuslerp_flatten", "whether a tensor is one vector, not one of each row or column", default=True, kind=bool)
COLUMNS = Parameter("nuslerp_row_wise", "unless it is flat: whether columns are vectors, not rows", default=False, kind=bool)


def _share(info: TensorInfo) -> float:
    one, two = (values["weight"] for values in info.terms)
    return 0.5 if abs(one + two) < 1e-6 else float(two / (one + two))


def _nuslerp_sweeps(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    if parameters[FLATTEN.name]:
        return (gram_sweep(lambda gram, info: list(_arc(_share(info), gram, NUSLERP_LINEAR))),)
    if parameters[COLUMNS.name]:
        return (
            Reduction(
                _column_products,
                lambda total, more: total.add_(more),
                _of_columns,
                partial_bytes=lambda _, shape: 24 * math.prod(shape[-1:]),
            ),
        )
    return ()


def _products(block: Block, *, columns: bool) -> torch.Tensor:
    """float64[3, vectors]: of each row, or column, of the first term with itself, with the second's, and of that with itself."""
    import torch

    from paramdelta_dist.kernels.reductions import add_halves

    one, two = (block.rows(block.delta(term, out)).double() for term, out in zip(block.terms, block.scratch, strict=False))
    pairs = ((one, one), (one, two), (two, two))
    return torch.stack([add_halves((left * right).t().contiguous() if columns else left * right) for left, right in pairs])


def _column_products(block: Block) -> Any:
    return _products(block, columns=len(block.tensor.shape) > 1)  # a tensor of one dimension is one vector


def _of_columns(total: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """float64[2, columns]: the factors of both terms in each; [2, 1] for one vector."""
    return _factors_of_each(total, _share(info))


def _factors_of_each(products: torch.Tensor, t: float) -> torch.Tensor:
    """float64[2, vectors] for products float64[3, vectors], on the CPU: by the same library whatever the device."""
    import torch

    each = [_arc(t, ((aa, ab), (ab, bb)), NUSLERP_LINEAR) for aa, ab, bb in products.t().tolist()]
    return torch.tensor(each, dtype=torch.float64).view(-1, 2).t()


def _nuslerp(block: Block) -> None:
    if block.parameters[FLATTEN.name]:
        _combine(block)
        return
    if block.parameters[COLUMNS.name]:
        factors = block.statistics[0].to(block.acc.device)
    else:
        factors = _factors_of_each(_products(block, columns=False), _share(block.tensor)).unsqueeze(-1).to(block.acc.device)
    if block.base is None:
        block.acc.zero_()
    for term, factor in zip(block.terms, factors, strict=True):
        delta = block.delta(term, block.scratch[0])
        block.rows(delta).mul_(factor.to(delta.dtype))
        block.acc.add_(delta)


# multislerp

NORMALIZE_WEIGHTS = Parameter("normalize_weights", "whether weights are divided by their sum", default=True, kind=bool)
ALMOST_NOTHING = 1e-8


def _no_sum(parameters: Parameters, terms: Sequence[Parameters]) -> str | None:
    if parameters[NORMALIZE_WEIGHTS.name] and math.fsum(term["weight"] for term in terms) == 0:
        return "the weights add up to 0, and their sum is what is divided by; change a weight, or give `normalize_weights: false`"
    return None


def _multislerp_factors(gram: Gram, info: TensorInfo) -> Sequence[float]:
    weights = [values["weight"] for values in info.terms]
    if info.parameters[NORMALIZE_WEIGHTS.name]:
        total = math.fsum(weights)
        weights = [weight / total for weight in weights]
    if len(weights) == 1:
        return [1.0]
    norms = [math.sqrt(gram[i][i]) for i in range(len(weights))]
    units = [weight / (norm + ALMOST_NOTHING) for weight, norm in zip(weights, norms, strict=True)]
    length = _length(units, gram)
    if length < ALMOST_NOTHING:  # the directions cancel
        return weights
    # The tangent at the mean direction that the method then follows, Σ wᵢ (uᵢ − <uᵢ, μ> μ), is Σ wᵢ uᵢ less its part along
    # itself: nothing. So the arc ends where it begins, and what is left is the mean direction with the mean length.
    size = math.fsum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return [unit / length * size for unit in units]


def _length(factors: Sequence[float], gram: Gram) -> float:
    """Of the sum of vectors with these factors and scalar products."""
    terms = (one * two * gram[i][j] for i, one in enumerate(factors) for j, two in enumerate(factors))
    return math.sqrt(max(0.0, math.fsum(terms)))


# Karcher mean

MAX_ITER = Parameter("max_iter", "most steps towards the mean", default=10, kind=int, minimum=1, maximum=1000)
TOL = Parameter("tol", "a step this short is the last", default=1e-5, minimum=0, exclusive_minimum=True)


def _karcher_factors(gram: Gram, info: TensorInfo) -> Sequence[float]:
    tolerance, count = info.parameters["tol"], len(gram)
    if count == 1:
        return [1.0]
    norms = [math.sqrt(gram[i][i]) for i in range(count)]
    valid = [i for i in range(count) if norms[i] > tolerance]
    if not valid:
        return [0.0] * count
    cosines = [[gram[i][j] / (norms[i] * norms[j]) for j in valid] for i in valid]  # of the unit vectors, which factors are of from here on
    share = 1 / len(valid)
    mean = [share] * len(valid)
    length = _length(mean, cosines)
    mean = [1.0] + [0.0] * (len(valid) - 1) if length < tolerance else [factor / length for factor in mean]
    for _ in range(info.parameters["max_iter"]):
        tangent = [0.0] * len(valid)
        for i in range(len(valid)):
            cosine = max(-1.0, min(1.0, math.fsum(factor * cosines[i][j] for j, factor in enumerate(mean))))
            angle = math.acos(cosine)
            if angle < tolerance:
                continue
            stretch = share * angle / math.sin(angle) if math.sin(angle) else 0.0
            tangent[i] += stretch
            tangent = [part - stretch * cosine * factor for part, factor in zip(tangent, mean, strict=True)]
        step = _length(tangent, cosines)
        if step < tolerance:
            break
        mean = [math.cos(step) * factor + math.sin(step) / step * part for factor, part in zip(mean, tangent, strict=True)]
        length = _length(mean, cosines)
        mean = [factor / length for factor in mean]
    size = math.fsum(norms) / count
    result = [0.0] * count
    for i, factor in zip(valid, mean, strict=True):
        result[i] = size * factor / norms[i]
    return result


_PAPER = "https://en.wikipedia.org/wiki/Slerp"
T = Parameter("t", "how far from the first model to the second: 0 is the first, 1 the second")

_STRAIGHT = (
    "Where one of the two is all zeros, as a bias may be, it has no direction and the way is straight; mergekit takes the angle to be "
    "a right one, so that at t = 0.5 the other keeps 0.71 of its length, not half."
)

SLERP = Method(
    name="slerp",
    title="SLERP: between two models along an arc",
    family="directions",
    formula="sin((1 − t)θ)/sin θ · Θ_a + sin(tθ)/sin θ · Θ_b, θ their angle in each tensor; if |cos θ| > 0.9995 (1 − t) Θ_a + t Θ_b",
    paper=_PAPER,
    scope=Scope.TENSOR,
    roles=Roles.PAIR,
    parameters=(T,),
    example="""\
method: slerp
base: s3://models/Mistral-7B-Instruct
models:
  - model: s3://models/Mistral-7B-code
parameters:
  t: 0.4
output: s3://models/Mistral-7B-between
""",
    min_models=2,
    max_models=2,
    skip_zero_weight=False,
    notes=_STRAIGHT,
    apply=_combine,
    reductions=_combination(lambda gram, info: _arc(info.parameters["t"], gram, SLERP_LINEAR)),
    scratch_blocks=2,
    identity_at={"t": 0.3},
)

NUSLERP = Method(
    name="nuslerp",
    title="NuSLERP: between two models by weight, or between two deltas",
    family="directions",
    formula="slerp with t = w₂/(w₁ + w₂) of two models, or, with a base, of their deltas",
    paper=_PAPER,
    scope=Scope.TENSOR,
    roles=Roles.PAIR,
    parameters=(WEIGHT, FLATTEN, COLUMNS),
    example="""\
method: nuslerp
models:
  - model: s3://models/Mistral-7B-Instruct
    weight: 0.6
  - model: s3://models/Mistral-7B-code
    weight: 0.4
output: s3://models/Mistral-7B-between
""",
    min_models=2,
    max_models=2,
    accepts_base=True,
    skip_zero_weight=False,
    notes="`nuslerp_row_wise` means columns, as in mergekit, whose names these are; with more than two dimensions, those of the last. "
    + _STRAIGHT,
    apply=_nuslerp,
    reductions=_nuslerp_sweeps,
    blocks=BlockShape.ROWS,
    scratch_blocks=2,
    temporary_blocks=11,
    identity_at={},
)

MULTISLERP = Method(
    name="multislerp",
    title="Multi-SLERP: the mean direction of several models, with their mean length",
    family="directions",
    formula="Σ wᵢ ‖xᵢ‖ · μ/‖μ‖, μ = Σ wᵢ xᵢ/‖xᵢ‖, for each tensor of the models or, with a base, of their deltas",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    scope=Scope.TENSOR,
    roles=Roles.MODELS,
    parameters=(WEIGHT, NORMALIZE_WEIGHTS),
    example="""\
method: multislerp
models:
  - model: s3://models/Mistral-7B-Instruct
    weight: 0.5
  - model: s3://models/Mistral-7B-code
    weight: 0.3
  - model: s3://models/Mistral-7B-math
    weight: 0.2
output: s3://models/Mistral-7B-between
""",
    accepts_base=True,
    skip_zero_weight=False,
    notes="The step in the tangent space that it is described with has length zero. Where directions cancel: Σ wᵢ xᵢ.",
    apply=_combine,
    reductions=_combination(_multislerp_factors),
    check=_no_sum,
    scratch_blocks=2,
    identity_at={},
    symmetric=True,
)

KARCHER = Method(
    name="karcher",
    title="Karcher mean: the point nearest to all models on the sphere",
    family="directions",
    formula="argmin over unit x of Σ angle(x, Θᵢ)², for each tensor, times the mean length",
    paper="https://arxiv.org/abs/2603.04972",
    scope=Scope.TENSOR,
    roles=Roles.MODELS,
    parameters=(MAX_ITER, TOL),
    example="""\
method: karcher
models:
  - model: s3://models/Mistral-7B-Instruct
  - model: s3://models/Mistral-7B-code
  - model: s3://models/Mistral-7B-math
output: s3://models/Mistral-7B-mean
""",
    apply=_combine,
    reductions=_combination(_karcher_factors),
    scratch_blocks=2,
    identity_at={},
    symmetric=True,
)
