"""NearSwap: a model that moves towards another where the two are near (https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import BlockShape, Method, Parameter, Roles, Scope

if TYPE_CHECKING:
    from paramdelta_dist.kernels.blocks import Block

NEAR = 1e-6
"""Differences below this count as this."""


def _apply(block: Block) -> None:
    import torch

    one, two, share = block.scratch[:3]
    for term, out in zip(block.terms, (one, two), strict=True):
        out.copy_(term.post)
    torch.sub(one, two, out=share).abs_().clamp_(min=NEAR)
    torch.div(block.parameters["t"], share, out=share).clamp_(max=1)
    two.mul_(share)
    torch.add(two, one.mul_(share.neg_().add_(1)), out=block.acc)


NEARSWAP = Method(
    name="nearswap",
    title="NearSwap: take over what is nearly the same",
    family="two models",
    formula="Θ = w Θ_b + (1 − w) Θ_a, w = min(t / |Θ_a − Θ_b|, 1): Θ_b where they differ by t at most, else t from Θ_a towards it",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    scope=Scope.ELEMENT,
    roles=Roles.PAIR,
    parameters=(Parameter("t", "how far an element moves at most", minimum=0),),
    example="""\
method: nearswap
base: s3://models/Llama-2-70B-one
models:
  - model: s3://models/Llama-2-70B-two
parameters:
  t: 0.0001
output: s3://models/Llama-2-70B-near
""",
    min_models=2,
    max_models=2,
    skip_zero_weight=False,
    apply=_apply,
    blocks=BlockShape.ANY,
    scratch_blocks=3,
    identity_at={"t": 0.01},
)
