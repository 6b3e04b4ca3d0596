"""The merges that are kept: their inputs, the same bytes on every machine, and their recipes."""

import json

import torch

from tests.methods.golden import numbers
from tests.models import save_model

BUCKET = "paramdelta-golden"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
WORDS = ["<s>", "</s>", *(f"word{number}" for number in range(18))]
SHAPES = {
    "model.embed_tokens.weight": (20, 24),
    "model.layers.0.mlp.up_proj.weight": (40, 24),
    "model.layers.0.mlp.down_proj.weight": (24, 40),
    "model.layers.0.norm.weight": (24,),
    "model.layers.1.mlp.up_proj.weight": (40, 24),
    "model.layers.1.mlp.down_proj.weight": (24, 40),
    "lm_head.weight": (20, 24),
}
MODELS = {"new": 1, "old": 2, "post": 3, "other": 4, "third": 5}
"""Name and seed."""


def tokenizer(words):
    vocab = {word: number for number, word in enumerate(words)}
    added = [{"id": vocab[word], "content": word, "special": True} for word in WORDS[:2]]
    return {"version": "1.0", "added_tokens": added, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"}}


def make_inputs(root):
    """Every model in every dtype, as folders `root/DTYPE-NAME`; `post` once more as `wide-post`, with other tokens in another order."""
    for label, dtype in DTYPES.items():
        for name, seed in MODELS.items():
            _make(root / f"{label}-{name}", seed, dtype, WORDS)
    _make(root / "wide-post", MODELS["post"], torch.bfloat16, [*WORDS[:2], *reversed(WORDS[3:]), "another", "one", "more", "<tool>"])


def _make(folder, seed, dtype, words):
    """A model as far from the first as fine-tunes are, its every third element where it was."""
    tensors = {"model.steps": torch.arange(7)}
    for index, (name, shape) in enumerate(SHAPES.items()):
        shape = (len(words), *shape[1:]) if shape[0] == len(WORDS) else shape
        moved = 0.02 * numbers(100 * seed + index, shape)
        moved.ravel()[::3] = 0
        tensors[name] = torch.from_numpy(numbers(1000 + index, shape) + moved).to(dtype)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    save_model(folder, tensors, files=2, config={**config, "dtype": str(dtype).removeprefix("torch.")})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(words)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))


def recipes(root):
    """The kept merges by name, as documents without `output`; inputs are below `root`, a folder or URL."""

    def at(name, dtype="bf16"):
        return f"{root}/{dtype}-{name}"

    delta = {"post": at("post"), "base": at("old")}
    two = [{"post": at(name), "weight": weight} for name, weight in (("post", 1.0), ("other", 0.5))]
    return {
        "paramdelta": {"base": at("new"), "deltas": [{**delta, "weight": 0.8}], "shard_size": 4000},
        "rules": {
            "base": at("new"),
            "deltas": [{**delta, "weight": [{"match": "*.mlp.*", "value": 0.5}, {"value": 1.0}]}],
            "exclude": ["lm_head.*"],
            "dtype": "float32",
        },
        "ties": {"method": "ties", "parameters": {"density": 0.4}, "base": at("new"), "deltas": two, "shard_size": 4000},
        "dare": {"method": "dare_linear", "parameters": {"density": 0.5, "seed": 7}, "base": at("new"), "deltas": two},
        "slerp": {"method": "slerp", "parameters": {"t": 0.3}, "base": at("new"), "models": [{"model": at("post")}]},
        "by-token": {
            "base": at("new"),
            "deltas": [{"post": f"{root}/wide-post", "base": at("old")}],
            "vocab": "by-token",
            "shard_size": 4000,
        },
        "pad": {"base": at("new"), "deltas": [delta], "vocab": "pad", "tokenizer_from": at("post")},
        "sweep": {"base": at("new"), "deltas": [delta], "sweep": {"deltas.0.weight": [0.5, 1.0]}},
    }
