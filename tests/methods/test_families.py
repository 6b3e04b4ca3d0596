"""The streamed methods against their oracles, golden numbers and laws, in blocks of every size."""

import numpy as np
import pytest
import torch

from paramdelta_dist.kernels.random import Philox, stream_key
from paramdelta_dist.methods import Roles, dare, find_method
from tests.methods import oracles
from tests.methods.golden import BASE, DELTAS, KEEP, MODELS, assert_golden
from tests.methods.run_method import array, as_they_are, over, run

UNEQUAL = [{"weight": weight} for weight in (0.5, 0.3, 0.2)]
CUBED = BASE + 2000 * DELTAS[0] ** 3


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def golden_mask(monkeypatch):
    """The elements that the golden numbers were made with. Patched and not given: no seed of ours draws them."""

    def keep(block, term):
        first = block.first
        return torch.from_numpy(KEEP[term.position].ravel()[first : first + block.n].copy())

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


RANDOM = [
    ("dare_linear", {"density": 0.3}),
    ("dare_linear", {"density": 0.5, "k": -0.5}),
    ("dare_linear", {"density": 0.9, "k": 0.8}),
    ("dare_ties", {"density": 0.3}),
    ("della_linear", {"density": 0.4, "epsilon": 0.3}),
    ("della", {"density": 0.6}),
]


@pytest.mark.parametrize(("name", "parameters"), RANDOM)
def test_over_seeds_the_mean_of_a_thinned_delta_is_the_delta(name, parameters):
    seeds, (base, (post, *_)) = 300, tensors(2, (16, 32), 1)
    total = squares = 0
    for seed in range(seeds):
        change = array(run(name, base, over(base, [post]), {**parameters, "seed": seed})) - array(base)
        total, squares = total + change, squares + change**2
    mean, delta = total / seeds, array(post) - array(base)
    deviation = np.sqrt(np.maximum(squares / seeds - mean**2, 0) / seeds)
    assert (np.abs(mean - delta) <= 5 * deviation + 1e-12).all()
    assert (deviation > 0).mean() > 0.5


def test_dare_keeps_the_same_elements_whatever_is_made_of_them():
    base, (post, *_) = tensors(2, (16, 32), 1)
    linear, ties, other = (
        run(name, base, over(base, [post]), {"density": 0.5, "seed": seed})
        for name, seed in (("dare_linear", 1), ("dare_ties", 1), ("dare_linear", 2))
    )
    assert torch.equal(linear, ties)
    assert not torch.equal(linear, other)


def test_random_numbers_go_with_a_delta_when_another_is_left_out():
    base, (one, two) = tensors(2, (16, 32), 2)
    both = run("dare_linear", base, over(base, [one, two]), {"density": 0.5, "weight": 1.0}, [{"weight": 0.0}, {}])
    alone = run("dare_linear", base, over(base, [two]), {"density": 0.5}, numbers=[1])
    assert torch.equal(both, alone)


def test_each_tensor_and_each_delta_is_thinned_in_its_own_way():
    base, (post, *_) = tensors(2, (16, 32), 1)
    made = [
        run("dare_linear", base, over(base, [post]), {"density": 0.5}, tensor=tensor, numbers=[number])
        for tensor, number in (("a", 0), ("b", 0), ("a", 1))
    ]
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_dare_stretched_by_l1_keeps_the_sum_of_magnitudes():
    base, (post, *_) = tensors(2, (64, 64), 1)
    for k in (0.0, 0.3):
        change = run("dare_linear", base, over(base, [post]), {"density": 0.4, "rescale": "l1", "k": k}) - base
        assert change.abs().sum().item() == pytest.approx((post - base).abs().sum().item(), rel=1e-9)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher"])
def test_equal_models_of_16_bits_give_that_model_and_a_zero_tensor_stays_zero(name):
    parameters = {"t": 0.3} if name == "slerp" else {}
    for model in (tensors(1, (30, 40), 1)[0].bfloat16(), torch.zeros(30, 40, dtype=torch.bfloat16)):
        assert torch.equal(run(name, None, as_they_are([model, model.clone()]), parameters), model)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_the_ends_of_an_arc_are_the_models(name):
    _, (one, two) = tensors(1, (30, 40), 2, torch.bfloat16, size=1.0)
    for end, model in enumerate((one, two)):
        parameters, values = ({"t": float(end)}, None) if name == "slerp" else ({}, [{"weight": 1.0 - end}, {"weight": float(end)}])
        assert torch.equal(run(name, None, as_they_are([one, two]), parameters, values), model)


def test_opposite_directions_do_not_stop_a_merge():
    one = tensors(1, (30, 40), 1)[0]
    middle = run("multislerp", None, as_they_are([one, -one]), {}, [{"weight": 0.5}, {"weight": 0.5}])
    assert middle.abs().max() == 0
    assert torch.isfinite(run("slerp", None, as_they_are([one, -one]), {"t": 0.3})).all()
    assert torch.isfinite(run("karcher", None, as_they_are([one, -one]))).all()
    assert torch.isfinite(run("model_stock", torch.zeros_like(one), over(torch.zeros_like(one), [one, -one]))).all()


@pytest.mark.parametrize(
    ("name", "parameters", "values"),
    [
        ("multislerp", {"normalize_weights": True}, [{"weight": 1.0}, {"weight": -1.0}]),
        ("della", {}, [{"density": 0.9, "epsilon": 0.15}]),
        ("della_linear", {}, [{"density": 1.0, "epsilon": 0.4}, {"density": 0.3, "epsilon": 0.4}]),
    ],
)
def test_parameters_that_do_not_go_together_are_refused_and_others_are_not(name, parameters, values):
    method = find_method(name)
    assert method.check(parameters, values)
    assert method.check({"normalize_weights": False}, [{"density": 1.0, "epsilon": 0.5, "weight": 0.0}]) is None


DROPPING = ("dare", "della", "breadcrumbs")
WHOLE = [scene for scene in SCENES if not scene[0].startswith(DROPPING) and scene[1].get("select_topk") != 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "parameters", "values"), WHOLE, ids=[f"{name}-{number}" for number, (name, *_) in enumerate(WHOLE)])
def test_what_is_not_finite_is_seen_in_the_result(name, parameters, values, bad):
    roles = find_method(name).roles
    base, models = tensors(4, (30, 40), 2 if roles is Roles.PAIR else 3)
    models[-1].view(-1)[701] = bad
    based = roles is Roles.DELTAS or name == "multislerp"
    terms = over(base, models) if based else as_they_are(models)
    made = run(name, base if based else None, terms, parameters, values or [{}] * len(models))
    assert not torch.isfinite(made.view(-1)[701])
