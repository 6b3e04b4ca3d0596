"""Component and layer of a tensor, by the names that real models have."""

import pytest
import torch
import transformers as t

from paramdelta_dist.checkpoint.components import Component, Place, locate

NAMES = {
    # Llama, Qwen, Mistral
    "model.embed_tokens.weight": ("embedding", None),
    "model.layers.7.self_attn.q_proj.weight": ("attention", 7),
    "model.layers.7.self_attn.k_proj.bias": ("attention", 7),
    "model.layers.7.self_attn.q_norm.weight": ("norm", 7),
    "model.layers.12.mlp.gate_proj.weight": ("mlp", 12),
    "model.layers.12.mlp.gate_up_proj.weight": ("mlp", 12),
    "model.layers.12.post_attention_layernorm.weight": ("norm", 12),
    "model.norm.weight": ("norm", None),
    "lm_head.weight": ("lm_head", None),
    # Meta's own names for Llama
    "tok_embeddings.weight": ("embedding", None),
    "layers.3.attention.wq.weight": ("attention", 3),
    "layers.3.feed_forward.w2.weight": ("mlp", 3),
    "layers.3.attention_norm.weight": ("norm", 3),
    "output.weight": ("lm_head", None),
    # Qwen-MoE and Mixtral as they are published, and as newer transformers stacks them
    "model.layers.0.mlp.gate.weight": ("router", 0),
    "model.layers.0.mlp.shared_expert_gate.weight": ("router", 0),
    "model.layers.0.mlp.shared_expert.gate_proj.weight": ("expert", 0),
    "model.layers.47.mlp.experts.127.down_proj.weight": ("expert", 47),
    "model.layers.47.mlp.experts.gate_up_proj": ("expert", 47),
    "model.layers.31.block_sparse_moe.gate.weight": ("router", 31),
    "model.layers.31.block_sparse_moe.experts.7.w1.weight": ("expert", 31),
    # DeepSeek
    "model.layers.60.self_attn.kv_a_proj_with_mqa.weight": ("attention", 60),
    "model.layers.60.self_attn.kv_a_layernorm.weight": ("norm", 60),
    "model.layers.60.mlp.gate.e_score_correction_bias": ("router", 60),
    "model.layers.60.mlp.shared_experts.up_proj.weight": ("expert", 60),
    "model.layers.61.eh_proj.weight": ("other", 61),
    "model.layers.61.enorm.weight": ("norm", 61),
    "model.layers.61.embed_tokens.weight": ("embedding", 61),
    "model.layers.61.shared_head.head.weight": ("lm_head", 61),
    "model.layers.61.shared_head.norm.weight": ("norm", 61),
    # Gemma, text only and with its vision tower
    "model.layers.5.pre_feedforward_layernorm.weight": ("norm", 5),
    "language_model.model.layers.5.mlp.up_proj.weight": ("mlp", 5),
    "vision_tower.vision_model.encoder.layers.5.mlp.fc1.weight": ("other", None),
    "multi_modal_projector.mm_soft_emb_norm.weight": ("other", None),
    # GPT-2, GPT-NeoX, OPT, gpt-oss
    "transformer.wte.weight": ("embedding", None),
    "h.11.attn.c_attn.bias": ("attention", 11),
    "transformer.h.11.ln_2.bias": ("norm", 11),
    "transformer.h.11.mlp.c_proj.weight": ("mlp", 11),
    "transformer.ln_f.weight": ("norm", None),
    "gpt_neox.embed_in.weight": ("embedding", None),
    "gpt_neox.layers.4.attention.query_key_value.weight": ("attention", 4),
    "embed_out.weight": ("lm_head", None),
    "model.decoder.embed_positions.weight": ("embedding", None),
    "model.decoder.layers.2.self_attn_layer_norm.bias": ("norm", 2),
    "model.decoder.layers.2.fc2.weight": ("mlp", 2),
    "model.layers.9.self_attn.sinks": ("attention", 9),
    "model.layers.9.mlp.router.bias": ("router", 9),
    "model.layers.9.mlp.experts.down_proj_bias": ("expert", 9),
    # BERT
    "bert.embeddings.token_type_embeddings.weight": ("embedding", None),
    "embeddings.LayerNorm.weight": ("norm", None),
    "encoder.layer.3.attention.self.query.bias": ("attention", 3),
    "encoder.layer.3.attention.output.dense.weight": ("attention", 3),
    "encoder.layer.3.attention.output.LayerNorm.weight": ("norm", 3),
    "encoder.layer.3.intermediate.dense.weight": ("mlp", 3),
    "encoder.layer.3.output.dense.weight": ("mlp", 3),
    "bert.pooler.dense.weight": ("other", None),
    "cls.predictions.decoder.weight": ("lm_head", None),
    "cls.predictions.transform.dense.weight": ("other", None),
    # T5
    "shared.weight": ("embedding", None),
    "decoder.block.3.layer.1.EncDecAttention.q.weight": ("attention", 3),
    "decoder.block.3.layer.2.DenseReluDense.wo.weight": ("mlp", 3),
    "decoder.block.3.layer.2.layer_norm.weight": ("norm", 3),
    # others, and nonsense
    "backbone.layers.0.mixer.in_proj.weight": ("other", 0),
    "weight": ("other", None),
    "": ("other", None),
    "model.layers.x.weight": ("other", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_component_and_layer(name):
    component, layer = NAMES[name]
    assert locate(name) == Place(Component(component), layer)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
MODELS = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
    "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SMALL, num_key_value_heads=2, num_experts=2, moe_intermediate_size=16)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100)),
    "bert": lambda: t.BertForMaskedLM(t.BertConfig(**SMALL)),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_of_a_real_architecture_has_its_place(model):
    with torch.device("meta"):
        names = list(MODELS[model]().state_dict())
    places = {name: locate(name) for name in names}
    unknown = [name for name, place in places.items() if place.component is Component.OTHER]
    assert not [name for name in unknown if "predictions.transform" not in name]
    assert {place.layer for place in places.values()} == {None, 0, 1}
    parts = {place.component for place in places.values() if place.layer == 1}
    feed_forward = {Component.EXPERT, Component.ROUTER} if model in ("qwen3_moe", "mixtral") else {Component.MLP}
    assert parts == {Component.ATTENTION, Component.NORM} | feed_forward
