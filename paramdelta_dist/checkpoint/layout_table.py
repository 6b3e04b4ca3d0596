"""Names and layouts that one model has in the files of different libraries, as data: by `model_type` of the config.

All names are those without what is around a language model (see PREFIXES), and with 0 for every number between dots:
`layers.0.mlp.gate.weight`. Each rule leads to one of the spellings, which it leaves as it is, so that models in either are brought to
the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

PREFIXES = ("_orig_mod.", "module.", "language_model.", "model.", "backbone.", "thinker.")
"""Beginnings of names that say what is around a language model, or which library held it; any number of them, in any order."""
COMPILED = "_orig_mod."
"""A part of names that `torch.compile` puts before each module that it compiled."""

FUSED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}  # fmt: skip
"""Tensors of all experts of a layer, [experts, rows, columns], by the matrices whose rows those of an expert are, in this order."""

INTERLEAVED = frozenset({"gpt_oss", "inkling_mm_model", "inkling_text", "inkling2", "inkling2_text"})
"""Model types whose fused tensors have the rows of gate and up in turns."""
INPUTS_FIRST = frozenset({"llama4", "llama4_text"})
"""Model types whose fused tensors are [experts, inputs, outputs], where sizes do not tell."""

_Rename = tuple[str, str]
"""A regular expression that is looked for in a name, and a template for what it finds."""


class Joined(NamedTuple):
    """A tensor that has the rows of others, one after the other."""

    whole: str
    """End of its name."""
    parts: tuple[str, ...]
    """Ends of theirs, in place of that; a single one with # in it stands for as many as there are, counted from 0."""


class Family(NamedTuple):
    """Names that models of some types go by."""

    types: str
    """Values of `model_type`, with spaces between them."""
    renames: tuple[_Rename, ...] = ()
    """In the order in which they are applied."""
    joined: tuple[Joined, ...] = ()


def _joined(before: str, whole: str, parts: str, last: str = "weight") -> Joined:
    return Joined(f"{before}{whole}.{last}", tuple(f"{before}{part}.{last}" for part in parts.split()))


_W123 = ((r"\.experts\.0\.w1\.", ".experts.0.gate_proj."), (r"\.experts\.0\.w3\.", ".experts.0.up_proj."),
         (r"\.experts\.0\.w2\.", ".experts.0.down_proj."))  # fmt: skip
_SPARSE_BLOCK = ((r"\.block_sparse_moe\.", ".mlp."), *_W123)
_FORGET_GATE = ((r"\.self_attn\.(A_log|dt_bias|f_a_proj|f_b_proj|f_proj)(?=\.|$)", r".self_attn.forget_gate.\1"),)
_HYPER = ((r"\.hc_attn_(fn|base|scale)$", r".attn_hc.\1"), (r"\.hc_ffn_(fn|base|scale)$", r".ffn_hc.\1"))
_BAILING = (
    (r"^word_embeddings\.", "embed_tokens."), (r"\.attention\.", ".self_attn."), (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.gate\.expert_bias$", ".mlp.gate.e_score_correction_bias"), (r"\.self_attn\.query_layernorm\.", ".self_attn.q_norm."),
    (r"\.self_attn\.key_layernorm\.", ".self_attn.k_norm."),
)  # fmt: skip
_Q_K_V = tuple(_joined(".self_attn.", "query_key_value", "q_proj k_proj v_proj", last) for last in ("weight", "bias"))
_CONVOLUTIONS = _joined(".", "conv1d", "q_conv1d k_conv1d v_conv1d")
_GATE_UP = _joined(".", "gate_up_proj", "gate_proj up_proj")

FAMILIES = (
    Family("mixtral minimax kimi_linear", _SPARSE_BLOCK),
    Family("minimax_m2", _SPARSE_BLOCK),
    Family("phimoe", (*_SPARSE_BLOCK, (r"\.mlp\.gate\.", ".mlp.router."))),
    Family(
        "minimax_m3_vl minimax_m3_vl_text",
        (
            (r"\.block_sparse_moe\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"), *_SPARSE_BLOCK,
            (r"\.self_attn\.index_([qk])_(proj|norm)\.", r".self_attn.indexer.\1_\2."),
            (r"^vision_tower\.vision_model\.embeddings\.patch_embedding\.", "vision_tower.embeddings.proj."),
            (r"^vision_tower\.vision_model\.encoder\.layers\.", "vision_tower.layers."),
            (r"^vision_tower\.vision_model\.pre_layrnorm\.", "vision_tower.pre_layrnorm."),
            (r"^patch_merge_mlp\.linear_([12])\.", r"multi_modal_projector.merge_linear_\1."),
        ),
        (_GATE_UP,),
    ),
    Family(
        "deepseek_v4",
        (
            (r"\.attn\.", ".self_attn."), (r"\.ffn\.", ".mlp."), (r"\.indexer\.compressor\.", ".compressor.indexer."),
            (r"^embed\.weight$", "embed_tokens.weight"), (r"^head\.weight$", "lm_head.weight"),
            (r"^hc_head_(fn|base|scale)$", r"hc_head.hc_\1"),
            (r"\.attn_norm\.", ".input_layernorm."), (r"\.ffn_norm\.", ".post_attention_layernorm."), *_HYPER,
            (r"\.attn_sink$", ".sinks"), (r"\.self_attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
            (r"\.self_attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
            (r"(?<=\.compressor)(.*)\.norm\.", r"\1.kv_norm."),
            (r"\.self_attn\.norm\.", ".self_attn.kv_norm."), (r"\.ape$", ".position_bias"), (r"\.wq_a\.", ".q_a_proj."),
            (r"\.wq_b\.", ".q_b_proj."), (r"\.wkv\.", ".kv_proj."), (r"\.wgate\.", ".gate_proj."), (r"\.wo_([ab])\.", r".o_\1_proj."),
            (r"\.self_attn\.q_norm\.", ".self_attn.q_a_norm."), (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
            (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."), (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
            (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."), *_W123,
        ),
    ),
    Family("lfm2_moe", _W123),
    Family(
        "granitemoe granitemoeshared granitemoehybrid",
        (
            (r"\.block_sparse_moe\.input_linear\.weight$", ".block_sparse_moe.experts.gate_up_proj"),
            (r"\.block_sparse_moe\.output_linear\.weight$", ".block_sparse_moe.experts.down_proj"),
            (r"\.block_sparse_moe\.router\.layer\.weight$", ".block_sparse_moe.router.weight"),
        ),
    ),
    Family("aria aria_text", ((r"\.experts\.fc1\.weight$", ".experts.gate_up_proj"), (r"\.experts\.fc2\.weight$", ".experts.down_proj"))),
    Family(
        "step3p7 step3p5",
        (
            (r"\.moe\.gate\.weight$", ".mlp.gate.weight"), (r"\.moe\.router_bias$", ".mlp.gate.e_score_correction_bias"),
            (r"\.moe\.(gate|up|down)_proj\.weight$", r".mlp.experts.\1_proj"), (r"\.share_expert\.", ".mlp.shared_experts."),
            (r"^vit_large_projector\.", "multi_modal_projector."),
        ),
    ),
    Family("kimi_linear", _FORGET_GATE, (_CONVOLUTIONS,)),
    Family("glm5_next glm5_next_text", (*_FORGET_GATE, *_HYPER), (_CONVOLUTIONS,)),
    Family(
        "olmo_hybrid",
        ((r"\.attention_layer_norm\.", ".input_layernorm."), (r"\.feedforward_layer_norm\.", ".post_attention_layernorm.")),
        (_CONVOLUTIONS,),
    ),
    Family("bailing_hybrid", (*_BAILING, *_FORGET_GATE), (*_Q_K_V, _CONVOLUTIONS)),
    Family("bailing_moe bailing_moe_v2 sarvam_moe", _BAILING, _Q_K_V),
    Family(
        "hy_v3",
        (
            (r"\.mlp\.router\.gate\.weight$", ".mlp.gate.weight"), (r"\.mlp\.expert_bias$", ".mlp.e_score_correction_bias"),
            (r"\.mlp\.shared_mlp\.", ".mlp.shared_experts."),
        ),
    ),
    Family(
        "laguna",
        (
            (r"\.mlp\.experts\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
            (r"\.mlp\.shared_expert\.", ".mlp.shared_experts."),
        ),
    ),
    Family("ernie4_5_moe", ((r"\.mlp\.moe_statics\.", ".mlp.gate.moe_statics."),)),
    Family("gpt_neox", ((r"^embed_out\.", "lm_head."),)),
    Family(
        "exaone",
        (
            (r"^transformer\.wte\.", "embed_tokens."), (r"^transformer\.h\.", "layers."), (r"^transformer\.ln_f\.", "norm."),
            (r"\.attn\.attention\.", ".self_attn."), (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."), (r"\.ln_1\.", ".input_layernorm."),
            (r"\.ln_2\.", ".post_attention_layernorm."), (r"\.mlp\.c_fc_0\.", ".mlp.gate_proj."), (r"\.mlp\.c_fc_1\.", ".mlp.up_proj."),
            (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
        ),
    ),
    Family(
        "kimi_k25 kimi_k3",
        (
            (r"^vision_tower\.encoder\.blocks\.0\.norm0\.", "vision_tower.layers.0.norm1."),
            (r"^vision_tower\.encoder\.blocks\.0\.norm1\.", "vision_tower.layers.0.norm2."),
            (r"^vision_tower\.encoder\.blocks\.0\.mlp\.fc0\.", "vision_tower.layers.0.mlp.fc1."),
            (r"^vision_tower\.encoder\.blocks\.0\.mlp\.fc1\.", "vision_tower.layers.0.mlp.fc2."),
            (r"^vision_tower\.encoder\.blocks\.0\.wo\.", "vision_tower.layers.0.attn.proj."),
            (r"^vision_tower\.encoder\.(?!blocks\.)", "vision_tower."),
            (r"^vision_tower\.patch_embed\.pos_emb\.weight$", "vision_tower.patch_embed.pos_emb.position_embeddings"), *_SPARSE_BLOCK,
        ),
    ),  # q, k and v of its vision tower have their rows in another order, not only another place
    Family("qwen4_exp qwen4_exp_text", joined=(Joined("ngram_embedding.weight", ("ngram_embedding.shard_#.weight",)),)),
    Family("phi3 phi4 phi4mm", joined=(_joined(".self_attn.", "qkv_proj", "q_proj k_proj v_proj"), _GATE_UP)),
    Family("baichuan", joined=(_joined(".self_attn.", "W_pack", "q_proj k_proj v_proj"),)),
)  # fmt: skip


def families_of(types: Collection[str]) -> Iterator[Family]:
    """Those that models of these types belong to."""
    return (family for family in FAMILIES if not frozenset(family.types.split()).isdisjoint(types))
