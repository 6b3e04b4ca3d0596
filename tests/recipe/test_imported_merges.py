"""The same config given to mergekit and, imported, to us: the same numbers, with gradients, filters and slices.

Slow, and needs PyPI the first time: mergekit lives in an environment of its own, which `benchmarks/mergekit.py` makes.
"""

import json
import subprocess

import pytest
import torch
import transformers
import yaml

from paramdelta_dist import api
from paramdelta_dist.recipe.mergekit import import_mergekit
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests import oracle
from tests.methods.test_mergekit import CLOSE, RUN
from tests.models import SMALL

pytestmark = pytest.mark.slow

LAYERS = 5
GRADIENTS = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]


def listed(weights, **each):
    return [{"model": model, "parameters": {"weight": weight, **each}} for model, weight in zip("ab", weights, strict=True)]


CONFIGS = {
    "linear": {"merge_method": "linear", "models": listed((0.6, [0.1, 0.9])), "parameters": {"normalize": True}},
    "slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, LAYERS]}, {"model": "b", "layer_range": [0, LAYERS]}]}],
        "parameters": {"t": GRADIENTS},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
            {"model": "b", "parameters": {"density": 0.33, "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.1}]}},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": listed((GRADIENTS, -0.5)),
        "parameters": {"lambda": [0.5, 1.5]},
    },
    "task_arithmetic_in_slices": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    {"model": "base", "layer_range": [0, 2]},
                    {"model": "a", "layer_range": [0, 2], "parameters": {"weight": [0.2, 1]}},
                    {"model": "b", "layer_range": [0, 2]},
                ],
                "parameters": {"weight": 0.4},
            },
            {
                "sources": [{"model": model, "layer_range": [2, LAYERS]} for model in ("base", "a", "b")],
                "parameters": {"weight": [{"filter": "mlp", "value": [0, 2]}, {"value": 0.7}]},
            },
        ],
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": listed((0.5, 0.5), density=0.7, gamma=0.02),
    },
    "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]},
    "nuslerp": {"merge_method": "nuslerp", "models": listed((0.6, 0.4))},
    "dare_linear": {"merge_method": "dare_linear", "base_model": "base", "models": listed((0.6, 0.4), density=1.0)},
    "della": {"merge_method": "della", "base_model": "base", "models": listed((0.6, 0.4), density=1.0)},
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder where mergekit made all of them, below names as here."""
    from benchmarks import mergekit

    root = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": LAYERS}, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).float()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, size in (("base", 0.0), ("a", 2e-3), ("b", 3e-3)):
        model.load_state_dict({key: t + size * torch.randn_like(t) for key, t in start.items()})
        model.save_pretrained(root / name)
    configs = {str(root / "theirs" / name): absolute(config, root) for name, config in CONFIGS.items()}
    (root / "configs.json").write_text(json.dumps(configs))
    command = [mergekit.environment() / "bin" / "python", "-c", RUN, root / "configs.json"]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(root), **mergekit.OFFLINE})
    return root


def absolute(config, root):
    text = json.dumps({**config, "dtype": "float32"})
    for name in ("base", "a", "b"):
        for key in ("model", "base_model"):
            text = text.replace(f'"{key}": "{name}"', f'"{key}": "{root / name}"')
    return json.loads(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_imported_recipe_gives_what_mergekit_gives(theirs, name):
    (made,) = import_mergekit(yaml.safe_dump(absolute(CONFIGS[name], theirs)), where="m.yml", output=str(theirs / "ours" / name))
    api.merge(parse_recipe(made.text, where="r.yaml"))
    ours, expected = oracle.load(theirs / "ours" / name), oracle.load(theirs / "theirs" / name)
    assert ours.keys() == expected.keys()
    apart = {key: ((ours[key] - expected[key]).abs().max() / expected[key].abs().max()).item() for key in ours}
    worst = max(apart, key=apart.get)
    print(f"{name}: at most {apart[worst]:.1e}, in {worst}")
    assert apart[worst] <= CLOSE
