"""Models as training leaves them, given to mergekit and, by the imported recipe, to us: tied, with biases that are zero in one, tensors
that nobody changed, columns of outliers, norms near 1 whose deltas are multiples of a rounding step, and cut into other files each.

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

FOLDERS = {"base": "100KB", "a": "60KB", "b": "150KB", "c": "5GB"}
GRADIENT = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.5}]
AT_A_CUT = 20
"""Elements that may differ where a density cuts: of equal magnitudes mergekit keeps any."""


def over_base(method, weights=(0.5, 0.3, 0.2), shared=None, **each):
    models = [
        {"model": name, "parameters": {"weight": weight, **{key: values[number] for key, values in each.items()}}}
        for number, (name, weight) in enumerate(zip("abc", weights, strict=True))
    ]
    return {"merge_method": method, "base_model": "base", "models": models, "parameters": shared or {}}


def bare(method, names, base=None, **shared):
    models = [{"model": name} for name in names]
    return {"merge_method": method, **({"base_model": base} if base else {}), "models": models, "parameters": shared}


def weighted(method, names, weights, **shared):
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in zip(names, weights, strict=True)]
    return {"merge_method": method, "models": models, "parameters": shared}


CUT = {
    "ties": over_base("ties", density=(0.2, 0.5, 0.8), shared={"normalize": True, "int8_mask": True, "lambda": 1.7}),
    "ties_against": over_base("ties", (1.0, -0.6, 0.2), density=(0.4, 0.4, 0.4), shared={"normalize": False}),
    "breadcrumbs": over_base("breadcrumbs", density=(0.9, 0.5, 0.3), gamma=(0.01, 0.2, 0.9)),
    "breadcrumbs_without_gamma": over_base("breadcrumbs", density=(0.7, 0.7, 0.7), gamma=(0.0, 0.0, 0.0)),
    "breadcrumbs_ties": over_base("breadcrumbs_ties", density=(0.8, 0.8, 0.8), shared={"normalize": True}),
}
WHOLE = {
    "linear": weighted("linear", "abc", (1.5, -0.2, 0.4), normalize=False),
    "linear_mean": weighted("linear", ["base", *"abc"], (1, 2, 3, 4)),
    "task_arithmetic": over_base("task_arithmetic", (1.0, -1.0, 0.3), shared={"lambda": 0.7}),
    "ties_of_all": over_base("ties", (1.0, -1.0, 0.0), density=(1.0, 1.0, 1.0)),
    "dare_linear": over_base("dare_linear", density=(1.0, 1.0, 1.0)),
    "slerp": bare("slerp", "ac", "a", t=0.3),
    "slerp_by_layers": bare("slerp", "ac", "a", t=GRADIENT),
    "model_stock": bare("model_stock", "abc", "base"),
    "model_stock_of_rows": bare("model_stock", "abc", "base", filter_wise=True),
    "nuslerp": weighted("nuslerp", "ac", (0.6, 0.4)),
    "nuslerp_of_rows": weighted("nuslerp", "ac", (0.6, 0.4), nuslerp_flatten=False),
}
FEW = over_base("ties", density=(0.003,) * 3)
STRAIGHT = bare("slerp", "ab", "a", t=0.5)
EVERY = {**CUT, **WHOLE, "few": FEW, "straight": STRAIGHT}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the models are, and below `theirs` what mergekit made of them."""
    from benchmarks import mergekit

    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, tie_word_embeddings=True)).float()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for name, tensor in start.items():
        if tensor.dim() == 2:
            tensor[:, 3] *= 20
        elif "norm" in name:
            tensor += 0.3 * torch.rand_like(tensor)
        elif "v_proj" in name:
            tensor += torch.randn_like(tensor)
    for folder, cut in FOLDERS.items():
        drifted = {name: tensor + _drift(folder, name, tensor) for name, tensor in start.items()}
        model.load_state_dict({**drifted, "lm_head.weight": drifted["model.embed_tokens.weight"]})
        model.save_pretrained(root / folder, max_shard_size=cut)
    configs = {str(root / "theirs" / name): absolute(config, root) for name, config in EVERY.items()}
    (root / "configs.json").write_text(json.dumps(configs))
    command = [mergekit.environment() / "bin" / "python", "-c", RUN, root / "configs.json"]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(root), **mergekit.OFFLINE})
    return root


def _drift(folder, name, tensor):
    """What training changed: a little everywhere, and more in a few directions."""
    frozen = "layers.1" in name and "norm" in name
    if folder == "base" or frozen or (folder == "b" and ("embed" in name or "k_proj.bias" in name)):
        return torch.zeros_like(tensor)
    change = 1e-4 * torch.randn_like(tensor)
    if "bias" in name:  # else mergekit's cosines of small vectors at right angles, in float32, decide
        change += 1e-3
    if tensor.dim() == 2:
        change += 3e-4 * torch.randn(tensor.shape[0], 4) @ torch.randn(4, tensor.shape[1])
    return change


def absolute(config, root):
    text = json.dumps({**config, "dtype": "float32"})
    for name in FOLDERS:
        for key in ("model", "base_model"):
            text = text.replace(f'"{key}": "{name}"', f'"{key}": "{root / name}"')
    return json.loads(text)


def both(root, name):
    (made,) = import_mergekit(yaml.safe_dump(absolute(EVERY[name], root)), where="m.yml", output=str(root / "ours" / name))
    api.merge(parse_recipe(made.text, where="r.yaml"))
    ours, theirs = oracle.load(root / "ours" / name), oracle.load(root / "theirs" / name)
    assert ours.keys() == theirs.keys()
    return ours, theirs


def differing(ours, theirs):
    """bool[...]: elements that are further apart than the arithmetic of float32 explains."""
    return (ours - theirs).abs() > CLOSE * theirs.abs().max()


@pytest.mark.parametrize("name", WHOLE)
def test_what_training_leaves_merges_to_the_same(root, name):
    ours, theirs = both(root, name)
    assert [key for key in ours if differing(ours[key], theirs[key]).any()] == []


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_differs_in_nothing_but_equal_magnitudes(root, name):
    ours, theirs = both(root, name)
    apart = sum(int(differing(ours[key], theirs[key]).sum()) for key in ours)
    print(f"{name}: {apart} of {sum(tensor.numel() for tensor in ours.values())} elements differ")
    assert apart <= AT_A_CUT


def test_of_a_small_tensor_mergekit_keeps_one_element_and_we_none(root):
    ours, theirs = both(root, "few")
    base = oracle.load(root / "base")
    small = [key for key in ours if ours[key].numel() < 1 / 0.003]
    assert small
    assert all(torch.equal(ours[key], base[key]) for key in small)
    assert all((theirs[key] != base[key]).sum() <= 3 for key in small)
    assert any((theirs[key] != base[key]).any() for key in small)
    assert not any(differing(ours[key], theirs[key]).sum() > 3 for key in ours if key not in small)


def test_towards_a_zero_vector_we_go_straight_and_mergekit_round_a_corner(root):
    ours, theirs = both(root, "straight")
    first = oracle.load(root / "a")
    zero = [key for key in ours if "k_proj.bias" in key]
    assert zero
    for key in zero:
        assert not differing(ours[key], 0.5 * first[key]).any()
        assert not differing(theirs[key], 0.5**0.5 * first[key]).any()
    assert [key for key in ours if key not in zero and differing(ours[key], theirs[key]).any()] == []
