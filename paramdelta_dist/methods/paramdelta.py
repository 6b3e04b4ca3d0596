"""ParamΔ: what post-training added to an old base, added to a new one (Cao et al. 2025, https://arxiv.org/abs/2504.21023)."""

from __future__ import annotations

from paramdelta_dist.methods.card import WEIGHT, Method, Roles, Scope

PARAMDELTA = Method(
    name="paramdelta",
    title="ParamΔ: post-training without training",
    family="sums",
    formula="Θ_new = Θ'_base + Σ αᵢ (Θ_post,i − Θ_base,i)",
    paper="https://arxiv.org/abs/2504.21023",
    scope=Scope.ELEMENT,
    roles=Roles.DELTAS,
    parameters=(WEIGHT,),
    example="""\
method: paramdelta
base: s3://models/Llama-3.1-70B
deltas:
  - post: s3://models/Llama-3-70B-Instruct
    base: s3://models/Llama-3-70B
    weight: 1.0
output: s3://models/Llama-3.1-70B-ParamDelta
""",
    weights=lambda parameters, terms: [term["weight"] for term in terms],
    identity_at={},
    homogeneous=True,
    symmetric=True,
)
