"""Checkpoints of real architectures, made by transformers from small configs; nothing is downloaded."""

import tempfile
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 503,
}


def made(family, **config):
    """A model of random weights. The library takes longer to import than most tests that need none of it take to run."""
    import transformers

    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SMALL, **config))


ARCHITECTURES = {
    "llama": partial(made, "Llama", tie_word_embeddings=False),
    "llama_tied": partial(made, "Llama", tie_word_embeddings=True),
    "qwen2_biases": partial(made, "Qwen2", tie_word_embeddings=False),
    "mixtral_experts": partial(made, "Mixtral", num_local_experts=4, num_experts_per_tok=2),
}


def make_models(root, make, dtype=torch.bfloat16, cuts=("60KB", "100KB", "150KB")):
    """old, post and new below `root`: one architecture, three cuts into shards. Returns the folders in this order."""
    for name, content in _files(make, dtype, cuts).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    torch.manual_seed(0)
    return root / "old", root / "post", root / "new"


@cache
def _files(make, dtype, cuts):
    """What is in the three folders. Every test gets the same, so they are made once."""
    torch.manual_seed(0)
    model = make().to(dtype)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as root:
        for name, scale, cut in zip(("old", "post", "new"), (0.0, 1e-3, 4e-3), cuts, strict=True):
            drifted = {
                key: (t.double() + scale * torch.randn(t.shape).double()).to(dtype) if t.is_floating_point() else t
                for key, t in start.items()
            }
            model.load_state_dict(drifted)
            model.save_pretrained(Path(root, name), max_shard_size=cut)
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*.*"))}


def save_model(folder, tensors, *, files=1, config=None):
    """A checkpoint of exactly these tensors, cut into `files` files in the order given."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "toy", "architectures": ["Toy"]}))
    names = list(tensors)
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(files):
        part = names[number * len(names) // files : (number + 1) * len(names) // files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def recipe(new, post, old, output, **more):
    from paramdelta_dist.recipe.model import Recipe

    deltas = more.pop("deltas", ({"post": str(post), **({"base": str(old)} if old else {}), "weight": more.pop("weight", 1.0)},))
    return Recipe.model_validate({"base": str(new), "deltas": deltas, "output": str(output), **more})
