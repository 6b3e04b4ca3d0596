"""Arcee Fusion: take over only what changed much in rows whose distribution changed much (https://github.com/arcee-ai/mergekit)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from paramdelta_dist.methods.card import BlockShape, Method, Parameters, Reduction, Roles, Scope
from paramdelta_dist.methods.shared.quantiles import find_keys, float32_keys

if TYPE_CHECKING:
    import torch

    from paramdelta_dist.kernels.blocks import Block, TensorInfo

TINY = 1e-8
"""Added to every probability."""


def _probabilities(rows: torch.Tensor) -> torch.Tensor:
    """float64[rows, columns]: the softmax of each row."""
    from paramdelta_dist.kernels.reductions import add_halves
    from paramdelta_dist.kernels.transcendental import exp_of_negative

    powers = exp_of_negative(rows.double() - rows.double().amax(1, keepdim=True))
    return powers / add_halves(powers.clone()).unsqueeze(1) + TINY


def _divergences(block: Block) -> Any:
    """float64[rows]: Kullback-Leibler, of the second model's row from the first's."""
    from paramdelta_dist.kernels.reductions import add_halves
    from paramdelta_dist.kernels.transcendental import log

    q, p = (_probabilities(block.rows(block.delta(term, block.scratch[0]))) for term in block.terms)
    return [add_halves(log(p / q).mul_(p))]


def _joined(total: Any, more: Any) -> Any:
    total.extend(more)
    return total


def _of_rows(total: Any, info: TensorInfo) -> torch.Tensor:
    import torch

    return torch.cat(total)


def _importance(block: Block, ranking: int = 0) -> torch.Tensor:
    """int32[n]: keys of the magnitude of each element's change times the divergence of its row."""
    one, two = (block.delta(term, out) for term, out in zip(block.terms, block.scratch, strict=False))
    two.sub_(one).abs_()
    rows, first = block.rows(two), block.first // block.tensor.columns
    rows.mul_(block.statistics[0][first : first + len(rows)].to(two.device).unsqueeze(1))
    return float32_keys(two)


def _quartiles(info: TensorInfo) -> list[list[int]]:
    """Ranks from above of the quantiles 1/4, 1/2 and 3/4, at the whole places below them."""
    n = info.elements
    return [[n - quarters * (n - 1) // 4 for quarters in (1, 2, 3)]]


def _reductions(parameters: Parameters, terms: Sequence[Parameters]) -> tuple[Reduction, ...]:
    divergences = Reduction(_divergences, _joined, _of_rows, exact=True, partial_bytes=lambda _, shape: 8 * prod(shape[:-1]))
    return (divergences, *find_keys(_importance, _quartiles, at=1))


def _apply(block: Block) -> None:
    import torch

    from paramdelta_dist.kernels.selection import magnitude

    ((lower, median, upper),) = ([magnitude(found.prefix, torch.float32) for found in row] for row in block.statistics[2])
    importance = _importance(block).view(torch.float32)
    chosen = torch.logical_not(importance.double() < median + 1.5 * (upper - lower))  # what is NaN is taken over, and found
    one, two = (block.delta(term, out) for term, out in zip(block.terms, block.scratch, strict=False))
    torch.where(chosen, two, one, out=block.acc)


ARCEE_FUSION = Method(
    name="arcee_fusion",
    title="Arcee Fusion: take over only what matters",
    family="two models",
    formula="Θ_b where |Θ_b − Θ_a| · KL(row of softmax Θ_b ‖ Θ_a) ≥ median + 1.5 (upper − lower quartile) of that in the tensor, else Θ_a",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    scope=Scope.TENSOR,
    roles=Roles.PAIR,
    parameters=(),
    example="""\
method: arcee_fusion
base: s3://models/Mistral-7B-Instruct
models:
  - model: s3://models/Mistral-7B-code
output: s3://models/Mistral-7B-fused
""",
    min_models=2,
    max_models=2,
    skip_zero_weight=False,
    notes="Quantiles are exact; mergekit takes those of a random million of a large tensor's elements. Its divergences are sums in float32 "
    "of terms that cancel: where models hardly differ it takes over up to one element in twenty another way.",
    apply=_apply,
    reductions=_reductions,
    blocks=BlockShape.ROWS,
    scratch_blocks=2,
    temporary_blocks=12,
    compute_float64=True,
    identity_at={},
)
