"""ParamΔ: what post-training added to an old base, added to a new one (Cao et al. 2025, https://arxiv.org/abs/2504.21023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramdelta_dist.methods.card import Method, Scope

if TYPE_CHECKING:
    import torch


def paramdelta(
    acc: torch.Tensor,
    deltas: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    weights: Sequence[float],
    scratch: Sequence[torch.Tensor],
    shortcuts: bool,
) -> None:
    """acc += Σ αᵢ (postᵢ − baseᵢ), in the order given, element by element.

    Shapes: all [n]. `acc` and the three `scratch` blocks have the compute dtype, posts and bases their own.
    """
    from paramdelta_dist.kernels.elementwise import add_delta

    for (post, base), weight in zip(deltas, weights, strict=True):
        add_delta(acc, post, base, weight, scratch, shortcuts=shortcuts)


PARAMDELTA = Method(
    name="paramdelta",
    title="ParamΔ: post-training without training",
    formula="Θ_new = Θ'_base + Σ αᵢ (Θ_post,i − Θ_base,i)",
    paper="https://arxiv.org/abs/2504.21023",
    scope=Scope.ELEMENT,
    scratch=3,
    function=paramdelta,
    fused=True,
)
