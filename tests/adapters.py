"""Tiny models of transformers, and adapters of them as peft trains, saves and merges them."""

import json

import peft
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig
from transformers import Qwen3MoeForCausalLM as Qwen3Moe

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
FUSED = {"save_original_format": False}
EXPERTS = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SMALL | {"intermediate_size": 24, "attention_bias": True, "tie_word_embeddings": False} | more))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0))


def qwen_moe(**more):
    moe = {"moe_intermediate_size": 12, "intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}
    return Qwen3Moe(Qwen3MoeConfig(**SMALL | moe | more))


def gpt_oss():
    moe = {"intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}
    return GptOssForCausalLM(GptOssConfig(**SMALL | moe, layer_types=["full_attention"] * 2))


def trained(root, model, *, save=None, **config):
    """A base, an adapter of it with random factors, and the model that peft merges of both; the folders of all three."""
    torch.manual_seed(7)
    base, adapter, merged = root / "base", root / "adapter", root / "merged"
    model.save_pretrained(base, **(save or {}))
    tuned = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for _, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(adapter)
    tuned.merge_and_unload().save_pretrained(merged, **(save or {}))
    return base, adapter, merged


def apart(root, *, only=lambda name: True):
    """An adapter with factors for each expert, as of a model whose experts are modules."""
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for part, rows, columns in (("gate_proj", 12, 16), ("up_proj", 12, 16), ("down_proj", 16, 12)):
                path = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{part}"
                if only(path):
                    tensors[f"{path}.lora_A.weight"] = torch.randn(2, columns, generator=random)
                    tensors[f"{path}.lora_B.weight"] = torch.randn(rows, 2, generator=random)
    root.mkdir()
    save_file(tensors, root / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


def without(adapter, *keys, **more):
    """Take keys from an adapter's config, and write others."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in keys} | more))
