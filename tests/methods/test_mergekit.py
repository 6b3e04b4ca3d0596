"""The same merges by mergekit, where both define a method alike: real checkpoints in float32, both tools as their users run them.

Slow, and needs PyPI the first time: mergekit lives in an environment of its own, which `benchmarks/mergekit.py` makes.
"""

import json
import subprocess

import pytest
import torch
import transformers

from paramdelta_dist import api
from paramdelta_dist.recipe.model import Recipe
from tests import oracle
from tests.models import SMALL

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for name, config in json.load(open(sys.argv[1])).items():
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, lazy_unpickle=True)
    run_merge(MergeConfiguration.model_validate(config), name, options)
"""

WEIGHTS = (0.5, 0.3, 0.2)


def deltas(method, weights=(1.0, 1.0, 1.0), theirs=None, **parameters):
    """(our recipe, their configuration) of a method on deltas; parameters of theirs that have other names or values in `theirs`."""
    ours = {"method": method, "base": "base", "parameters": parameters}
    ours["deltas"] = [{"post": model, "weight": weight} for model, weight in zip("abc", weights, strict=True)]
    config = {"merge_method": method, "base_model": "base", "parameters": {**parameters, **(theirs or {})}}
    config["models"] = [{"model": model, "parameters": {"weight": weight}} for model, weight in zip("abc", weights, strict=True)]
    return ours, config


def without_weights(method, *, theirs=None, **parameters):
    ours, config = deltas(method, theirs=theirs, **parameters)
    for entry in (*ours["deltas"], *config["models"]):
        entry.pop("weight", None), entry.pop("parameters", None)
    return ours, config


def models(method, names, weights=None, base=None, **parameters):
    ours, config = {"method": method, "parameters": parameters}, {"merge_method": method, "parameters": parameters}
    if base:
        ours["base"] = config["base_model"] = base
    own = [{"weight": weight} for weight in weights] if weights else [{}] * len(names)
    ours["models"] = [{"model": name, **more} for name, more in zip(names, own, strict=True)]
    config["models"] = [{"model": name, "parameters": more} for name, more in zip(names, own, strict=True)]
    return ours, config


def pair(method, **parameters):
    ours, config = models(method, "a", base="base", **parameters)
    config["models"].insert(0, {"model": "base"})
    return ours, config


MERGES = {
    "linear": models("linear", "abc", WEIGHTS),
    "task_arithmetic": deltas("task_arithmetic", WEIGHTS, **{"lambda": 0.7}),
    "dare_linear": deltas("dare_linear", WEIGHTS, density=1.0),
    "dare_ties": deltas("dare_ties", WEIGHTS, density=1.0),
    "della": deltas("della", WEIGHTS, density=1.0),
    "breadcrumbs": deltas("breadcrumbs", WEIGHTS, density=0.7, gamma=0.02),
    "breadcrumbs_ties": deltas("breadcrumbs_ties", WEIGHTS, density=0.7, gamma=0.02),
    "sce": without_weights("sce", select_topk=0.5),
    "model_stock": without_weights("model_stock"),
    "model_stock_rows": without_weights("model_stock", filter_wise=True),
    "ram": without_weights("ram", epsilon=1e-3),
    "ramplus_tl": without_weights("ramplus_tl", epsilon=1e-3),
    "slerp": pair("slerp", t=0.3),
    "nearswap": pair("nearswap", t=0.001),
    "nuslerp": models("nuslerp", "ab", WEIGHTS[:2]),
    "nuslerp_base": models("nuslerp", "ab", WEIGHTS[:2], base="base"),
    "nuslerp_rows": models("nuslerp", "ab", WEIGHTS[:2], base="base", nuslerp_flatten=False),
    "nuslerp_columns": models("nuslerp", "ab", WEIGHTS[:2], base="base", nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": models("multislerp", "abc", WEIGHTS),
    "karcher": models("karcher", "abc"),
}
FUSION = pair("arcee_fusion")
TIES = deltas("ties", WEIGHTS, density=0.4, normalize="weight", theirs={"normalize": True})
CLOSE = 1e-6
"""Largest difference there may be to float32 arithmetic, relative to the largest element of the tensor."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders with what each tool made of every merge."""
    from benchmarks import mergekit

    root = tmp_path_factory.mktemp("mergekit")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)).float()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    common = {name: torch.randn_like(tensor) for name, tensor in start.items()}
    for name, size in (("base", 0.0), ("a", 2e-3), ("b", 2e-3), ("c", 3e-3)):
        model.load_state_dict({key: t + size * (common[key] + torch.randn_like(t)) for key, t in start.items()})
        model.save_pretrained(root / name)
    merges = {**MERGES, "ties": TIES, "arcee_fusion": FUSION}

    def absolute(config):
        text = json.dumps(config)
        for name in ("base", "a", "b", "c"):
            for key in ("model", "base_model", "post", "base"):
                text = text.replace(f'"{key}": "{name}"', f'"{key}": "{root / name}"')
        return json.loads(text)

    configs = {str(root / "theirs" / name): {**absolute(theirs), "dtype": "float32"} for name, (_, theirs) in merges.items()}
    (root / "configs.json").write_text(json.dumps(configs))
    command = [mergekit.environment() / "bin" / "python", "-c", RUN, root / "configs.json"]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(root), **mergekit.OFFLINE})

    def made(name):
        ours, _ = merges[name]
        api.merge(Recipe.model_validate({**absolute(ours), "output": str(root / "ours" / name)}))
        return oracle.load(root / "ours" / name), oracle.load(root / "theirs" / name)

    return made


@pytest.mark.parametrize("name", [*MERGES, "ties"])
def test_mergekit_makes_the_same_of_it(both, name):
    ours, theirs = both(name)
    assert ours.keys() == theirs.keys()
    apart = {key: ((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()).item() for key in ours}
    worst = max(apart, key=apart.get)
    print(f"{name}: at most {apart[worst]:.1e}, in {worst}; {sum(int((ours[k] != theirs[k]).sum()) for k in ours)} elements differ")
    assert apart[worst] <= CLOSE


def test_arcee_fusion_takes_over_the_same_but_for_what_float32_makes_of_divergences(both):
    """Of rows that hardly differ mergekit's divergence, a sum in float32 of terms that cancel, is good to few digits."""
    ours, theirs = both("arcee_fusion")
    differing = sum(int((ours[key] != theirs[key]).sum()) for key in ours)
    elements = sum(tensor.numel() for tensor in ours.values())
    print(f"arcee_fusion: {differing} of {elements} elements differ")
    assert differing <= 0.01 * elements
