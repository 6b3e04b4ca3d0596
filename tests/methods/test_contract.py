"""What every method that is registered promises, whatever it computes. A new one sits this exam without a line being added."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.api.verify import verify_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import RecipeError
from paramdelta_dist.kernels.blocks import TensorInfo
from paramdelta_dist.kernels.blockwise import BlockRunner
from paramdelta_dist.methods import METHODS, BlockShape, Roles, Scope
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests.methods.method_cases import make_models, recipe_for, sample, variants, with_small_blocks
from tests.oracle import load, same_bytes

CASES = [pytest.param(method, parameters, id=f"{method.name}-{n}") for method in METHODS for n, parameters in enumerate(variants(method))]
TILES = [
    pytest.param(
        method,
        parameters,
        tile,
        threads,
        id=f"{method.name}-{n}-{tile}",
        marks=() if (n + place + number) % 2 == 0 else pytest.mark.slow,
    )
    for place, method in enumerate(METHODS)
    for n, parameters in enumerate(variants(method))
    for number, (tile, threads) in enumerate(((24_000, 1), (41_000, 3)))
]
"""Every variant of a method with one of the two, by turns; the other where there is time."""
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), 4)


@pytest.fixture
def small_blocks(monkeypatch):
    with_small_blocks(monkeypatch)


def differing(one, two):
    one, two = load(one), load(two)
    return [name for name in one if not same_bytes(one[name], two[name])]


@pytest.mark.parametrize(("method", "parameters", "tile", "threads"), TILES)
def test_tiles_and_threads_change_no_byte(method, parameters, tile, threads, folders, tmp_path, small_blocks):
    api.merge(recipe_for(method, folders, tmp_path / "whole", parameters), workers=1)
    recipe = recipe_for(method, folders, tmp_path / "tiles", parameters)
    merge_plan, homology = api.plan(recipe)
    resources = Resources(workers=threads, tile_size=tile)
    sizing = resources.allocation(merge_plan).sizing
    assert (sizing.tile_size, sizing.threads_per_shard, sizing.shards_at_once) == (tile, threads, 1)
    made = merge_with(recipe, resources)
    assert differing(tmp_path / "tiles", tmp_path / "whole") == []
    document = api.plan_document(merge_plan, sizing, homology)
    assert merge_plan.bytes_to_read <= document["bytes_to_read"] <= made.report["bytes_read"] <= document["bytes_to_read"] * 1.3
    assert document["requests"]["read"] == made.report["requests"]
    assert sum(shard["read"] for shard in document["shards"]) == document["bytes_to_read"]


@EVERY
def test_what_was_merged_can_be_computed_again(method, folders, tmp_path, small_blocks):
    parameters, resources = next(variants(method)), Resources(tile_size=24_000)
    merge_with(recipe_for(method, folders, tmp_path / "out", parameters, shard_size="20KB"), resources)
    verdict = verify_with(str(tmp_path / "out"), resources, deep=True, recompute=0.5, seed=1)
    assert verdict["problems"] == []
    assert verdict["tiles_recomputed"] > 1
    assert load(tmp_path / "out")["z.steps"].tolist() == list(range(11))


@EVERY
def test_shards_change_no_byte(method, folders, tmp_path):
    for name, size in (("one", "5GB"), ("many", "20KB")):
        api.merge(recipe_for(method, folders, tmp_path / name, next(variants(method)), shard_size=size))
    assert differing(tmp_path / "one", tmp_path / "many") == []


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
@EVERY
def test_ray_changes_no_byte(method, folders, tmp_path):
    parameters = next(variants(method)) | ({"trim": "model"} if any(p.name == "trim" for p in method.parameters) else {})
    api.merge(recipe_for(method, folders, tmp_path / "local", parameters, shard_size="40KB"))
    api.merge(recipe_for(method, folders, tmp_path / "ray", parameters, shard_size="40KB"), engine="ray", workers=2)
    assert differing(tmp_path / "local", tmp_path / "ray") == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: byte equality of methods on the GPU is unverified here")
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_a_gpu_changes_no_byte(method, parameters, folders, tmp_path):
    api.merge(recipe_for(method, folders, tmp_path / "cpu", parameters))
    api.merge(recipe_for(method, folders, tmp_path / "gpu", parameters), device="cuda")
    assert differing(tmp_path / "cpu", tmp_path / "gpu") == []


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_at_its_neutral_parameters_a_method_changes_nothing(method, dtype, tmp_path, small_blocks):
    if method.identity_at is None:
        pytest.skip("claims nothing")
    base, post = make_models(tmp_path, 2, dtype=dtype)
    if method.roles is Roles.DELTAS:
        expected, recipe = (
            post,
            recipe_for(method, [base, *[post] * method.min_models], tmp_path / "out", method.identity_at, count=method.min_models),
        )
    else:
        twin = tmp_path / "twin"
        twin.symlink_to(post)
        expected, recipe = post, recipe_for(method, [post, twin], tmp_path / "out", method.identity_at, count=2)
    api.merge(recipe)
    assert differing(tmp_path / "out", expected) == []


@EVERY
def test_scaled_deltas_give_a_scaled_result(method, tmp_path, small_blocks):
    if not method.homogeneous:
        pytest.skip("claims nothing")
    folders = make_models(tmp_path, 4, dtype=torch.float64)
    base = load(folders[0])
    for folder in folders[1:]:
        _rewrite(tmp_path / "scaled" / folder.name, base, load(folder), 4.0)
    parameters = next(variants(method))
    scaled = [folders[0], *(tmp_path / "scaled" / folder.name for folder in folders[1:])]
    api.merge(recipe_for(method, folders, tmp_path / "out", parameters))
    api.merge(recipe_for(method, scaled, tmp_path / "four", parameters))
    one, four = load(tmp_path / "out"), load(tmp_path / "four")
    for name in (name for name in base if base[name].is_floating_point()):
        torch.testing.assert_close(four[name] - base[name], 4 * (one[name] - base[name]), rtol=1e-6, atol=1e-9)


def _rewrite(folder, base, model, factor):
    from tests.models import save_model

    tensors = {name: base[name] + factor * (t - base[name]) if t.is_floating_point() else t for name, t in model.items()}
    save_model(folder, {name: tensors[name].contiguous() for name in tensors})


@EVERY
def test_the_order_of_deltas_or_models_does_not_matter(method, tmp_path, small_blocks):
    if not method.symmetric or method.max_models == 1:
        pytest.skip("claims nothing")
    folders = make_models(tmp_path, 4, dtype=torch.float64)
    weighted = [{"weight": weight} if any(p.name == "weight" for p in method.parameters) else {} for weight in (1.0, 0.5, 2.0)]
    parameters = next(variants(method))
    fixed = folders[:1] if method.roles is Roles.DELTAS else []
    moving = folders[1:]
    api.merge(recipe_for(method, [*fixed, *moving], tmp_path / "out", parameters, each=weighted))
    turned = recipe_for(method, [*fixed, *moving[1:], moving[0]], tmp_path / "turned", parameters, each=[*weighted[1:], weighted[0]])
    api.merge(turned)
    one, two = load(tmp_path / "out"), load(tmp_path / "turned")
    for name in (name for name in one if one[name].is_floating_point()):
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-12)


@EVERY
def test_its_example_is_a_recipe_of_it(method):
    recipe = parse_recipe(method.example, where="example")
    assert recipe.method == method.name


@EVERY
def test_a_wrong_key_parameter_or_role_is_refused_with_what_there_is(method):
    document = yaml.safe_load(method.example)

    def refused(change):
        with pytest.raises(RecipeError) as refusal:
            parse_recipe(json.dumps({**document, **change}), where="recipe.yaml")
        assert refusal.value.exit_code == 2
        return str(refusal.value)

    names = [parameter.name for parameter in method.parameters]
    message = refused({"parameters": {**document.get("parameters", {}), "zzzzz": 1}})
    assert "unknown key 'parameters.zzzzz'" in message
    assert all(name in message for name in names)
    for name in names:
        message = refused({"parameters": {**document.get("parameters", {}), name + "x": 1}})
        assert f"did you mean {name!r}" in message or name in message
    for parameter in method.parameters:
        message = refused({"parameters": {**document.get("parameters", {}), parameter.name: [0]}})
        assert f"parameters.{parameter.name}: should be {parameter.range}" in message
    mine, other, first = ("deltas", "models", "model") if method.roles is Roles.DELTAS else ("models", "deltas", "post")
    message = refused({other: [{first: "/x"}]})
    assert f"{method.name} takes" in message
    assert f"`{mine}:`" in message
    if method.roles is Roles.DELTAS:
        assert "'base' is missing" in _refusal({key: value for key, value in document.items() if key != "base"})
    assert f"{mine}.0.zzzzz" in refused({mine: [{**entry, "zzzzz": 1} for entry in document[mine]]})


def _refusal(document):
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(json.dumps(document), where="recipe.yaml")
    return str(refusal.value)


@EVERY
def test_a_card_is_complete_and_fits_itself(method):
    assert method.title
    assert method.formula
    assert method.paper.startswith("https://")
    assert (method.weights is None) != (method.apply is None)
    assert len({parameter.name for parameter in method.parameters}) == len(method.parameters)
    for parameter in method.parameters:
        assert parameter.meaning
        if parameter.default is not None:
            assert parameter.check(parameter.default) == parameter.default
        parameter.check(sample(parameter))
    for parameters in variants(method):
        values = {p.name: parameters.get(p.name, p.default) for p in method.parameters}
        own = {p.name: values[p.name] for p in method.for_each}
        scopes = [reduction.scope for reduction in method.reductions(values, [own] * 3)]
        assert scopes == sorted(scopes, key=lambda scope: scope is not Scope.MODEL), "those over the model come first"
        assert not scopes or method.blocks is not BlockShape.ANY, "a block that spans tensors has no statistics of its own"
        assert set(scopes) <= {Scope.TENSOR, Scope.MODEL}
        if scopes:
            assert method.scope in ((Scope.MODEL,) if Scope.MODEL in scopes else (Scope.MODEL, Scope.TENSOR))


@EVERY
def test_what_is_not_finite_is_an_error_or_let_through_and_counted(method, tmp_path):
    folders = make_models(tmp_path, 4, shapes={"w": (40, 50)})
    for folder in folders:
        tensors = load(folder)
        tensors["w"][3, 7] = float("nan")
        from tests.models import save_model

        save_model(folder, {name: tensor.contiguous() for name, tensor in tensors.items()}, files=2)
    parameters = next(variants(method))
    from paramdelta_dist.errors import NonFinite

    with pytest.raises(NonFinite, match="tensor 'w'"):
        api.merge(recipe_for(method, folders, tmp_path / "out", parameters))


class Allocations(TorchDispatchMode):
    """Counts the bytes of memory that operations make, at their peak."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._held = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        taken = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (pointer := tensor.untyped_storage().data_ptr()) not in taken - self._held.keys():
                self._hold(pointer, tensor)
        return result

    def _hold(self, pointer, tensor):
        count, size = self._held.get(pointer, (0, tensor.untyped_storage().nbytes()))
        self.live += size if count == 0 else 0
        self.peak = max(self.peak, self.live)
        self._held[pointer] = count + 1, size
        weakref.finalize(tensor, self._drop, pointer)

    def _drop(self, pointer):
        count, size = self._held.pop(pointer)
        if count > 1:
            self._held[pointer] = count - 1, size
        else:
            self.live -= size


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_no_more_scratch_is_used_than_the_card_says(method, parameters):
    if method.apply is None:
        pytest.skip("a sum of deltas, whose memory is the kernel's own")
    n, count = 1 << 16, 2 if method.roles is Roles.PAIR else 3
    values = {p.name: parameters.get(p.name, p.default) for p in method.parameters}
    own = {p.name: values[p.name] for p in method.for_each}
    based = method.roles is Roles.DELTAS
    base, *models = (torch.randn(n, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(1 + count))
    terms = [(model, base if based else None) for model in models]
    runner = BlockRunner(method.scratch_blocks, torch.device("cpu"), wide=method.compute_float64)
    info = TensorInfo("w", (n // 512, 512), values, (own,) * count, tuple(range(count)))
    width = 8 if method.compute_float64 else 4
    for reduction in method.reductions(values, [own] * count):

        def look(reduction=reduction, info=info):
            return runner.collect(reduction.map, info, 0, torch.bfloat16, base if based else None, terms)

        look()  # what a thread makes once is no scratch
        with Allocations() as made:
            partial = look()
        partials = reduction.partial_bytes(count, info.shape)
        assert made.peak <= method.temporary_blocks * n * width + 2 * partials, f"{made.peak / n / width:.2f} blocks"
        info = replace(info, statistics=(*info.statistics, reduction.finalize(partial, info)))
    out = torch.empty(n, dtype=torch.bfloat16)

    def apply():
        runner.apply(method.apply, info, 0, out, base if based else None, terms)

    apply()
    with Allocations() as made:
        apply()
    assert made.peak <= method.temporary_blocks * n * width + 4096, f"{made.peak / n / width:.2f} blocks"
