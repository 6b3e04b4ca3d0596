"""The streamed methods against their oracles, golden numbers and laws, in blocks of every size."""

import numpy as np
import pytest
import torch

from paramdelta_dist.kernels.random import Philox, stream_key
from paramdelta_dist.kernels.transcendental import exp_of_negative, log
from paramdelta_dist.methods import METHODS, Roles, dare, find_method
from tests.methods import oracles
from tests.methods.golden import BASE, DELTAS, KEEP, MODELS, assert_golden
from tests.methods.running import array, as_they_are, over, run

UNEQUAL = [{"weight": weight} for weight in (0.5, 0.3, 0.2)]
CUBED = BASE + 2000 * DELTAS[0] ** 3


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def golden_mask(monkeypatch):
    def keep(block, term):
        first = block.first
        return torch.from_numpy(KEEP[term.number].ravel()[first : first + block.n].copy())

    monkeypatch.setattr(dare, "_keep", keep)


DELTA, MODEL = over(BASE, MODELS), as_they_are(MODELS)
P4 = [{"density": 0.6}] * 3
GOLDEN = {
    "dare_linear": ("dare_linear", BASE, DELTA, {}, P4),
    "dare_linear l1": ("dare_linear", BASE, DELTA, {"rescale": "l1"}, P4),
    "dare_ties l1": ("dare_ties", BASE, DELTA, {"rescale": "l1"}, P4),
    "dare k": ("dare_linear", BASE, DELTA[:1], {"k": 0.5}, P4[:1]),
    "breadcrumbs": ("breadcrumbs", BASE, DELTA, {"density": 0.5, "gamma": 0.1}, None),
    "sce": ("sce", BASE, DELTA, {}, None),
    "sce half": ("sce", BASE, DELTA, {"select_topk": 0.5}, None),
    "slerp": ("slerp", None, as_they_are([BASE, MODELS[0]]), {"t": 0.3}, None),
    "nuslerp": ("nuslerp", BASE, DELTA[:2], {}, UNEQUAL[:2]),
    "nuslerp rows": ("nuslerp", BASE, DELTA[:2], {"nuslerp_flatten": False}, UNEQUAL[:2]),
    "nuslerp columns": ("nuslerp", BASE, DELTA[:2], {"nuslerp_flatten": False, "nuslerp_row_wise": True}, UNEQUAL[:2]),
    "model_stock": ("model_stock", BASE, DELTA, {}, None),
    "karcher": ("karcher", None, MODEL, {}, None),
    "multislerp": ("multislerp", BASE, DELTA, {}, UNEQUAL),
    "arcee_fusion": ("arcee_fusion", None, as_they_are([BASE, CUBED]), {}, None),
    "nearswap": ("nearswap", None, as_they_are([BASE, MODELS[0]]), {"t": 0.02}, None),
    "ram": ("ram", BASE, DELTA, {"epsilon": 0.03}, None),
    "ramplus_tl": ("ramplus_tl", BASE, DELTA, {"epsilon": 0.03}, None),
}


@pytest.mark.parametrize("block", [8, 1 << 18])
@pytest.mark.parametrize("name", GOLDEN)
def test_a_method_gives_the_golden_numbers(monkeypatch, name, block):
    golden_mask(monkeypatch)
    method, base, terms, parameters, values = GOLDEN[name]
    assert_golden(name, array(run(method, base, terms, parameters, values, block=block)))


def tensors(seed, shape, count, dtype=torch.float64, size=0.05):
    """A base and models grown from it, with elements that did not change and ones that changed alike."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    models = [base + size * (common + torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(count)]
    for model in models:
        model.view(-1)[::5] = base.view(-1)[::5]
    return base.to(dtype), [model.to(dtype) for model in models]


def oracle(name, base, models, parameters, values, tensor="w"):
    """The expected result for arrays; random methods are told what the package draws."""
    deltas = [model - base for model in models]
    weights = [own.get("weight", 1.0) for own in values]
    factor, normalize = parameters.get("lambda", 1.0), parameters.get("normalize")
    if name.startswith(("dare", "della", "breadcrumbs")):
        thinned = []
        for number, (delta, own) in enumerate(zip(deltas, values, strict=True)):
            uniforms = torch.empty(delta.size, dtype=torch.float64)
            purpose = name.split("_")[0]
            Philox(torch.device("cpu")).uniforms(stream_key(parameters.get("seed", 0), purpose, str(number), tensor), 0, uniforms)
            drawn = uniforms.numpy().reshape(delta.shape)
            density = own.get("density", 1.0)
            if purpose == "dare":
                p = 1 - density
                thinned.append(oracles.dare(delta, drawn < density, p, parameters.get("rescale", "inverse_p"), parameters.get("k", 0)))
            elif purpose == "della":
                epsilon = own.get("epsilon", 0.15)
                thinned.append(oracles.della(delta, drawn, density, epsilon, parameters.get("rescale", "inverse_q")))
            else:
                thinned.append(oracles.breadcrumbs(delta, density, own.get("gamma", 0.01)))
        if name in ("dare_linear", "della_linear", "breadcrumbs"):
            return oracles.task_arithmetic(base, thinned, weights, factor)
        return oracles.consensus(base, thinned, weights, normalize or ("weight" if name == "della" else "none"), factor)
    return {
        "sce": lambda: oracles.sce(base, deltas, parameters.get("select_topk", 1.0)),
        "ram": lambda: oracles.ram(base, deltas, parameters.get("epsilon", 1e-5)),
        "ramplus_tl": lambda: oracles.ram(base, deltas, parameters.get("epsilon", 1e-5), 0.1, 0.2),
        "model_stock": lambda: oracles.model_stock(base, deltas, parameters.get("filter_wise", False)),
        "karcher": lambda: oracles.karcher(models),
        "multislerp": lambda: base + oracles.multislerp(deltas, weights),
        "nearswap": lambda: oracles.nearswap(*models, parameters["t"]),
        "slerp": lambda: oracles.slerp(*models, parameters["t"]),
        "arcee_fusion": lambda: oracles.arcee_fusion(*models),
    }[name]()


HALF = [{"density": 0.5}, {"density": 0.3, "weight": 0.5}, {"density": 0.9, "weight": -0.7}]
SCENES = [
    ("dare_linear", {"seed": 3, "lambda": 0.5}, HALF),
    ("dare_linear", {"k": -0.5}, HALF),
    ("dare_linear", {"rescale": "none"}, HALF),
    ("dare_ties", {"rescale": "l1", "normalize": "weight"}, HALF),
    ("dare_ties", {"normalize": "count"}, HALF),
    ("della", {}, HALF),
    ("della", {"rescale": "l1", "normalize": "none", "lambda": 1.1}, HALF),
    ("della_linear", {"seed": 9}, HALF),
    ("della_linear", {"rescale": "none"}, HALF),
    ("breadcrumbs", {}, [{"density": 0.9}, {"density": 1.0}, {"density": 0.2, "gamma": 0.5}]),
    ("breadcrumbs", {}, [{"density": 0.0}, {"density": 0.5, "gamma": 0.0}, {"density": 0.995, "weight": 2.0}]),
    ("breadcrumbs_ties", {"normalize": "count"}, HALF),
    ("sce", {}, None),
    ("sce", {"select_topk": 0.3}, None),
    ("sce", {"select_topk": 0.0}, None),
    ("ram", {"epsilon": 0.02}, None),
    ("ramplus_tl", {"epsilon": 0.02}, None),
    ("model_stock", {}, None),
    ("model_stock", {"filter_wise": True}, None),
    ("karcher", {}, None),
    ("multislerp", {}, UNEQUAL),
    ("slerp", {"t": 0.4}, None),
    ("nearswap", {"t": 0.03}, None),
    ("arcee_fusion", {}, None),
]


def expected_and_runner(name, parameters, values, shape, dtype=torch.float64):
    roles = find_method(name).roles
    base, models = tensors(4, shape, 2 if roles is Roles.PAIR else 3, dtype)
    based = roles is Roles.DELTAS or name == "multislerp"
    own = values or [{}] * len(models)
    terms = over(base, models) if based else as_they_are(models)
    expected = oracle(name, array(base), [array(model) for model in models], parameters, own)
    return expected, lambda block: run(name, base if based else None, terms, parameters, own, block=block)


@pytest.mark.parametrize("shape", [(1,), (7,), (31, 64), (3, 40, 24), ()], ids=str)
@pytest.mark.parametrize(("name", "parameters", "values"), SCENES, ids=[f"{name}-{number}" for number, (name, *_) in enumerate(SCENES)])
def test_a_method_gives_what_its_oracle_gives(name, parameters, values, shape):
    expected, runner = expected_and_runner(name, parameters, values, shape)
    found = array(runner(1 << 18))
    assert np.abs(found - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "parameters", "values"), SCENES, ids=[f"{name}-{number}" for number, (name, *_) in enumerate(SCENES)])
def test_elements_do_not_depend_on_how_a_tensor_is_walked(name, parameters, values, dtype):
    """Within what reductions over differently cut rows may differ by: nothing for those over chunks."""
    _, runner = expected_and_runner(name, parameters, values, (40, 4096), dtype)
    assert torch.equal(runner(1 << 14), runner(1 << 18))
