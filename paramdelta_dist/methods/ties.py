"""Deltas cut down to their largest elements: TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708) and plain magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import LAMBDA, WEIGHT, Method, Parameter, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.quantiles import add_histograms, delta_keys, find_ranks, float32_keys, histogram_bytes
from paramdelta_dist.methods.shared.sparsify import NORMALIZE, add_agreeing, add_all

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

DENSITY = Parameter(
    "density", "share of elements that are kept, those of largest magnitude", default=1.0, minimum=0, maximum=1, per_model=True
)
TRIM = Parameter(
    "trim",
    "whether that share is of each tensor or of the whole model",
    default="tensor",
    kind=str,
    choices=("tensor", "model"),
)
_ABOVE_ALL = 1 << 31
"""A key larger than that of any magnitude."""


def _ranks(info: TensorInfo) -> list[list[int]]:
    return [[int(values["density"] * info.elements)] for values in info.terms]


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    if all(term["density"] == 1 for term in terms):
        return ()
    return _OVER_MODEL if parameters["trim"] == "model" else find_ranks(delta_keys, _ranks)


def _first_digits(block: Block) -> list[torch.Tensor]:
    import torch

    from paramdelta_dist.kernels.selection import RankSearch

    return [RankSearch.of(torch.float32, 1).histogram(delta_keys(block, number)) for number in range(len(block.terms))]


def _begin(total: Any, info: TensorInfo) -> list[Any]:
    """Of each delta the search for its least kept magnitude, as a tuple; a number where there is nothing to look for."""
    import torch

    from paramdelta_dist.kernels.selection import RankSearch

    def begun(rank: int, histogram: torch.Tensor) -> Any:
        if rank in (0, info.elements):
            return 0 if rank else _ABOVE_ALL
        return tuple(RankSearch.of(torch.float32, rank).narrowed(histogram))

    return [begun(rank, histogram) for (rank,), histogram in zip(_ranks(info), total, strict=True)]


def _last_digits(block: Block) -> list[Any]:
    from paramdelta_dist.kernels.selection import RankSearch

    (searches,) = block.statistics
    return [
        RankSearch(*search).histogram(delta_keys(block, number)) if isinstance(search, tuple) else None
        for number, search in enumerate(searches)
    ]


def _end(total: Any, info: TensorInfo) -> list[int]:
    """Of each delta the key of its least kept magnitude."""
    from paramdelta_dist.kernels.selection import RankSearch

    (searches,) = info.statistics
    return [s if histogram is None else RankSearch(*s).narrowed(histogram).prefix for s, histogram in zip(searches, total, strict=True)]


_OVER_MODEL = (
    Reduction(_first_digits, add_histograms, _begin, scope=Scope.MODEL, exact=True, partial_bytes=histogram_bytes),
    Reduction(_last_digits, add_histograms, _end, scope=Scope.MODEL, exact=True, partial_bytes=histogram_bytes),
)


def _trimmed(block: Block, number: int, out: torch.Tensor) -> torch.Tensor:
    """The delta without what is not kept of it."""
    import torch

    block.delta(block.terms[number], out)
    if not block.statistics:
        return out
    keys = float32_keys(out)
    if block.parameters["trim"] == "model":
        return out.masked_fill_(keys < block.statistics[1][number], 0.0)
    (cut,) = block.statistics[2][number]
    kept = torch.empty(block.n, dtype=torch.bool, device=out.device)
    return out.masked_fill_(cut.mask(keys, block.first, kept).logical_not_(), 0.0)


_KEPT = (
    "⌊density · n⌋ of a tensor's n elements are kept, exactly: of equal magnitudes those with the lower index. Over a whole model all "
    "that equal the least kept one are kept. "
)

TIES = Method(
    name="ties",
    title="TIES: trim, elect the sign, add what agrees",
    family="thinned deltas",
    formula="δ̂ᵢ = the largest |δᵢ|;  s = sign Σ wᵢ δ̂ᵢ;  Θ = Θ_base + λ Σ_{sign δ̂ᵢ = s} wᵢ δ̂ᵢ / (how many agree | Σ of their wᵢ | 1)",
    paper="https://arxiv.org/abs/2306.01708",
    scope=Scope.MODEL,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, DENSITY, TRIM, replace(NORMALIZE, default="count", choices=("count", "weight", "none")), LAMBDA),
    example="""\
method: ties
parameters: {density: 0.2, lambda: 1.0}
base: s3://models/Mistral-7B
deltas:
  - {post: s3://models/Mistral-7B-math}
  - {post: s3://models/Mistral-7B-code, weight: 0.7, density: 0.3}
output: s3://models/Mistral-7B-math-code
""",
    notes=_KEPT + "The paper keeps 0.2 of the whole model (trim: model) and divides by count; mergekit keeps by tensor, one element "
    "at least and of equal magnitudes any, and divides by weight. Where the sum of a position is 0 its sign counts as +.",
    apply=add_agreeing(_trimmed),
    reductions=_reductions,
    scratch_blocks=6,
    temporary_blocks=3,
    compute_float64=True,
    identity_at={"density": 1.0},
    homogeneous=True,
    symmetric=True,
)

MAGNITUDE = Method(
    name="magnitude",
    title="Magnitude pruning: the largest elements of each delta, added",
    family="thinned deltas",
    formula="Θ = Θ_base + λ Σ wᵢ δ̂ᵢ,    δ̂ᵢ = the largest |δᵢ|",
    paper="https://arxiv.org/abs/2311.03099",
    scope=Scope.MODEL,
    roles=Roles.DELTAS,
    parameters=(WEIGHT, DENSITY, TRIM, LAMBDA),
    example="""\
method: magnitude
parameters: {density: 0.1}
base: s3://models/Mistral-7B
deltas:
  - {post: s3://models/Mistral-7B-math}
output: s3://models/Mistral-7B-math-light
""",
    notes=_KEPT.rstrip(),
    apply=add_all(_trimmed),
    reductions=_reductions,
    scratch_blocks=2,
    temporary_blocks=3,
    compute_float64=True,
    identity_at={"density": 1.0},
    homogeneous=True,
    symmetric=True,
)
