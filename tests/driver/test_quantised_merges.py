"""Merges of quantised models: in the base's own scheme or as plain numbers, judged in float64 by decoders that are not ours."""

import json

import pytest
import torch
from safetensors.torch import save_file

from paramdelta_dist import api
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.recipe.model import Recipe
from tests import oracle
from tests.driver.test_same_bytes import digests
from tests.quantised import SCHEMES, is_quantised, numbers, plain_tensors, save

OLD = plain_tensors(1)
POST = plain_tensors(2, 0.2, OLD)
NEW = plain_tensors(3, 0.5, OLD)


def tiles_of(monkeypatch, size):
    from paramdelta_dist.planning import memory

    monkeypatch.setattr(memory, "LOCAL_TILE", size)
    monkeypatch.setattr(memory, "SMALLEST_TILE", 512)


def merged(tmp_path, base, deltas, name="out", workers=None, **more):
    """A merge of folders; each delta is (post, base, weight)."""
    given = [{"post": str(post), "base": str(old), "weight": weight} for post, old, weight in deltas]
    api.merge(Recipe(base=str(base), deltas=tuple(given), output=str(tmp_path / name), **more), workers=workers)
    return tmp_path / name


FEW = {"fp8 in blocks", "fp8 of compressed-tensors, one scale", "mxfp4 of DeepSeek-V4", "nvfp4 of ModelOpt", "int4"}
"""One of each kind; what holds for them is tried with the others where there is time."""


@pytest.fixture(params=[pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in SCHEMES])
def scheme(request):
    return request.param


@pytest.fixture
def models(tmp_path, scheme):
    """(new base, old base, post), all in one scheme."""
    folders = [tmp_path / name for name in ("new", "old", "post")]
    for folder, tensors in zip(folders, (NEW, OLD, POST), strict=True):
        save(folder, tensors, scheme)
    return folders


def step(scheme, base):
    """Half the distance of neighbouring numbers at most, relative to the largest of each row's block: loose, but of the right size."""
    relative = {"fp8": 1 / 16, "FBG": 1 / 16, "mxf": 1 / 3, "nvf": 1 / 3, "int": 1 / 7}
    return relative[scheme[:3]]


def test_a_weight_of_zero_gives_every_byte_of_the_base(tmp_path, models):
    new, old, post = models
    out = merged(tmp_path, new, [(post, old, 0.0)])
    oracle.assert_same(oracle.load(out), oracle.load(new))
    assert json.loads((out / "config.json").read_text()) == json.loads((new / "config.json").read_text())


def test_over_its_own_base_it_gives_every_byte_of_the_post(tmp_path, models, scheme):
    _, old, post = models
    out = merged(tmp_path, old, [(post, old, 1.0)])
    made, expected = oracle.load(out), oracle.load(post)
    if "nvfp4" in scheme:  # the number for the whole tensor is the base's
        assert all(made[name].equal(expected[name]) for name in expected if "self_attn" not in name and "mlp" not in name)
    else:
        oracle.assert_same(
            {n: t for n, t in made.items() if "input_scale" not in n}, {n: t for n, t in expected.items() if "input_scale" not in n}
        )


def test_zeros_keep_the_sign_that_the_post_gives_them(tmp_path):
    """Numbers far below a step are zeros with the sign they had: what a block says is the same, and its bytes are not."""
    shape = (8, 64)
    old = {"model.layers.0.mlp.up_proj.weight": torch.full(shape, -1e-4).bfloat16()}
    post = {"model.layers.0.mlp.up_proj.weight": torch.full(shape, 1e-4).bfloat16()}
    for tensors in (old, post):
        tensors["model.layers.0.mlp.up_proj.weight"][:, ::32] = 1.0
    for name, tensors in (("old", old), ("post", post)):
        save(tmp_path / name, tensors, "mxfp4 of DeepSeek-V4")
    codes = [oracle.load(tmp_path / name)["model.layers.0.mlp.up_proj.weight"] for name in ("old", "post")]
    assert not codes[0].equal(codes[1])
    assert all((numbers(tmp_path / name)["model.layers.0.mlp.up_proj.weight"][:, 1:32] == 0).all() for name in ("old", "post"))
    out = merged(tmp_path, tmp_path / "old", [(tmp_path / "post", tmp_path / "old", 1.0)])
    oracle.assert_same(oracle.load(out), oracle.load(tmp_path / "post"))
    same = merged(tmp_path, tmp_path / "old", [(tmp_path / "post", tmp_path / "old", 0.0)], "same")
    oracle.assert_same(oracle.load(same), oracle.load(tmp_path / "old"))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_is_the_nearest_number_that_the_scheme_has(tmp_path, scheme, apart):
    folders = [tmp_path / name for name in ("new", "old", "post")]
    for folder, tensors in zip(folders, (NEW, OLD, POST), strict=True):
        save(folder, tensors, scheme, apart=apart)
    new, old, post = folders
    out = merged(tmp_path, new, [(post, old, 0.7)])
    base, exact = numbers(new), {}
    for name in base:
        exact[name] = base[name] + 0.7 * (numbers(post)[name] - numbers(old)[name])
    made = numbers(out)
    assert made.keys() == exact.keys()
    for name, tensor in made.items():
        if not is_quantised(name, tensor):
            assert tensor.equal(exact[name].bfloat16().double()), name
            continue
        error = (tensor - exact[name]).abs()
        peak = exact[name].abs().amax()
        assert error.max() <= step(scheme, base[name]) * peak, name
        assert error.max() > 0


def test_plain_numbers_are_exact_and_the_config_says_so(tmp_path, models):
    new, old, post = models
    out = merged(tmp_path, new, [(post, old, 0.7)], quantization="none")
    base, deltas = numbers(new), [(numbers(post), numbers(old), 0.7)]
    expected = oracle.merge(base, deltas, torch.bfloat16)
    made = oracle.load(out)
    assert made.keys() == expected.keys()
    wrong = {name: (made[name] != expected[name]).sum().item() for name in made if not made[name].equal(expected[name])}
    assert not wrong
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("method", ["paramdelta", "ties"])
def test_tiles_and_workers_do_not_change_a_byte(tmp_path, models, monkeypatch, method):
    new, old, post = models
    more = {"method": method, "shard_size": 30_000} | ({"parameters": {"density": 0.5}} if method == "ties" else {})
    reference = digests(merged(tmp_path, new, [(post, old, 0.7)], "one", **more))
    tiles_of(monkeypatch, 6_000)
    merged(tmp_path, new, [(post, old, 0.7)], "two", workers=3, **more)
    assert digests(tmp_path / "two") == reference


def test_a_plain_base_takes_a_quantised_delta(tmp_path, scheme):
    save(tmp_path / "new", NEW)
    save(tmp_path / "old", OLD, scheme)
    save(tmp_path / "post", POST, scheme)
    out = merged(tmp_path, tmp_path / "new", [(tmp_path / "post", tmp_path / "old", 1.0)])
    expected = oracle.merge(
        {n: t.double() for n, t in NEW.items()}, [(numbers(tmp_path / "post"), numbers(tmp_path / "old"), 1.0)], torch.bfloat16
    )
    made = oracle.load(out)
    assert made.keys() == expected.keys()
    assert all(made[name].equal(expected[name]) for name in made)  # zeros keep the sign that the post gives them


def test_a_quantised_base_takes_a_plain_delta(tmp_path, scheme):
    save(tmp_path / "new", NEW, scheme)
    save(tmp_path / "old", OLD)
    save(tmp_path / "post", POST)
    out = merged(tmp_path, tmp_path / "new", [(tmp_path / "post", tmp_path / "old", 1.0)])
    base, made = numbers(tmp_path / "new"), numbers(out)
    assert oracle.load(out).keys() == oracle.load(tmp_path / "new").keys()
    for name, tensor in made.items():
        exact = base[name] + POST[name].double() - OLD[name].double()
        assert (tensor - exact).abs().max() <= step(scheme, base[name]) * exact.abs().amax(), name


def test_what_is_left_out_is_the_bases_to_the_byte(tmp_path, models):
    new, old, post = models
    out = merged(tmp_path, new, [(post, old, 0.7)], exclude=["*mlp*"])
    made, base = oracle.load(out), oracle.load(new)
    assert made.keys() == base.keys()
    assert all(oracle.same_bytes(made[name], base[name]) for name in base if "mlp" in name)
    assert not all(oracle.same_bytes(made[name], base[name]) for name in base if "self_attn" in name)


def test_it_is_verified_and_computed_again(tmp_path, models, monkeypatch):
    new, old, post = models
    tiles_of(monkeypatch, 6_000)
    out = merged(tmp_path, new, [(post, old, 0.7)], shard_size=30_000)
    for seed in range(3):
        assert api.verify(str(out), deep=True, recompute=0.3, seed=seed)["problems"] == []
    assert api.verify(str(out), recompute=1.0)["problems"] == []


def test_what_rounding_leaves_of_the_deltas_is_said_and_the_way_on_keeps_them(tmp_path):
    """A delta of a hundredth of the weights is far below a step of four bits."""
    for name, tensors in (("old", OLD), ("post", plain_tensors(2, 0.01, OLD))):
        save(tmp_path / name, tensors, "int4")
    given = {"post": str(tmp_path / "post"), "base": str(tmp_path / "old")}
    plan, _ = api.plan(Recipe(base=str(tmp_path / "old"), deltas=(given,), output=str(tmp_path / "out")))
    found = api.rounding_document(plan)
    deltas = {n: numbers(tmp_path / "post")[n] - numbers(tmp_path / "old")[n] for n in numbers(tmp_path / "old")}
    measured = {each["component"]: each for each in found["rounding"]}
    attention = torch.cat([delta.flatten() for name, delta in deltas.items() if "self_attn" in name])
    assert measured["attention"]["delta"] == pytest.approx(attention.square().mean().sqrt().item())
    scales = [
        t.double().square().mean() for name, t in oracle.load(tmp_path / "old").items() if "self_attn" in name and name.endswith("_scale")
    ]
    assert measured["attention"]["step"] == pytest.approx(torch.stack(scales).mean().sqrt().item())
    assert measured["attention"]["ratio"] < 0.3
    assert all("`quantization: none`" in note for note in found["rounding_notes"])
    assert len(found["rounding_notes"]) == 2
    plain, _ = api.plan(Recipe(base=str(tmp_path / "old"), deltas=(given,), output=str(tmp_path / "out"), quantization="none"))
    assert api.rounding_document(plain) == {"rounding": [], "rounding_notes": []}


def test_figures_of_deltas_are_those_of_the_decoded_numbers(tmp_path, models):
    new, old, post = models
    recipe = Recipe(base=str(new), deltas=({"post": str(post), "base": str(old)},), output=str(tmp_path / "out"))
    (found,) = api.analyze(recipe, str(tmp_path / "figures"))["deltas"]
    ours, theirs = numbers(post), numbers(old)
    exact = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert found["norm"] == pytest.approx(exact.norm().item())
    assert found["max_abs"] == pytest.approx(exact.abs().max().item())
    assert api.merge(recipe, report_page=True).state == "merged"


def test_what_the_bases_scale_for_the_whole_tensor_cannot_express_is_refused_and_the_way_out_works(tmp_path):
    for name, tensors in (("old", OLD), ("post", plain_tensors(2, 9.0, OLD))):
        save(tmp_path / name, tensors, "nvfp4 of ModelOpt")
    delta = (tmp_path / "post", tmp_path / "old", 1.0)
    with pytest.raises(CheckpointError, match=r"times as large as the base's scale for the whole tensor.*`quantization: none`"):
        merged(tmp_path, tmp_path / "old", [delta], "refused")
    made = numbers(merged(tmp_path, tmp_path / "old", [delta], quantization="none"))
    expected = {name: tensor.bfloat16().double() for name, tensor in numbers(tmp_path / "post").items()}
    assert all(made[name].equal(expected[name]) for name in expected)


def test_codes_that_would_leave_what_follows_unaligned_are_refused_and_the_way_out_works(tmp_path):
    odd = {"model.layers.0.mlp.up_proj.weight": torch.randn(3, 5).bfloat16(), "model.norm.weight": torch.ones(4).bfloat16()}
    save(tmp_path / "base", odd, "FBGEMM")
    delta = (tmp_path / "base", tmp_path / "base", 0.5)
    with pytest.raises(CheckpointError, match="odd size of quantised tensors before it: `quantization: none`"):
        merged(tmp_path, tmp_path / "base", [delta], "refused")
    assert numbers(merged(tmp_path, tmp_path / "base", [delta], quantization="none")).keys() == odd.keys()


def test_rows_of_tokens_that_are_quantised_are_not_put_in_another_order_and_the_way_out_works(tmp_path):
    def model(rows, seed):
        random = torch.Generator().manual_seed(seed)
        names = ("model.embed_tokens.weight", "lm_head.weight")
        return {each: torch.randn(rows, 32, generator=random).bfloat16() for each in names}

    for name, rows, seed in (("base", 32, 1), ("post", 36, 2)):
        held = {k: v for n, t in model(rows, seed).items() for k, v in SCHEMES["FBGEMM"][0](n, t).items()}
        folder = tmp_path / name
        folder.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": rows}
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": SCHEMES["FBGEMM"][1]}))
        save_file(held, folder / "model.safetensors")
    delta = (tmp_path / "post", tmp_path / "base", 1.0)
    with pytest.raises(CheckpointError, match="cannot be put in another order as they are; `quantization: none`"):
        merged(tmp_path, tmp_path / "base", [delta], "refused", vocab="pad")
    assert merged(tmp_path, tmp_path / "base", [delta], vocab="pad", quantization="none").exists()


def test_check_says_what_is_quantised_how_it_is_written_and_whose_scales_of_activations(tmp_path):
    scheme = "fp8 of compressed-tensors, one scale"
    for name, tensors in (("new", NEW), ("old", OLD), ("post", POST)):
        save(tmp_path / name, tensors, scheme if name != "post" else "int4")
    given = {"post": str(tmp_path / "post"), "base": str(tmp_path / "old")}
    recipe = Recipe(base=str(tmp_path / "new"), deltas=(given,), output=str(tmp_path / "out"))
    notes = "\n".join(api.check(recipe).notes)
    assert "6 matrices are quantised (e4m3, F32 for each tensor): written in the same scheme" in notes
    assert "6 scales of activations are the base's" in notes
    assert "post: 6 matrices are quantised (int4, BF16 for each 1 × 32): merged as the numbers that they stand for" in notes
    plain = "\n".join(api.check(recipe.model_copy(update={"quantization": "none"})).notes)
    assert "written as plain numbers" in plain
    assert "scales of activations" not in plain


def test_inspecting_counts_numbers_and_not_codes(tmp_path):
    save(tmp_path / "model", NEW, "int4")
    found = api.inspect(str(tmp_path / "model"))
    assert found["parameters"] == sum(tensor.numel() for tensor in NEW.values())
    assert found["quantised"] == {"int4, BF16 for each 1 × 32": 6}


@pytest.mark.parametrize("scheme", ["fp8 in blocks", pytest.param("int4", marks=pytest.mark.slow)])
def test_large_tensors_are_merged_in_one_pass_to_the_same_bytes_as_in_several(tmp_path, scheme):
    """A plain post that holds the same numbers as the quantised one takes the way of decoding, adding and encoding."""
    shape = {"model.layers.0.mlp.up_proj.weight": (1088, 1024)}
    random = torch.Generator().manual_seed(4)
    old = {name: (torch.randn(size, generator=random) * 0.05).bfloat16() for name, size in shape.items()}
    post = {name: (tensor.float() + 0.02 * torch.randn(tensor.shape, generator=random)).bfloat16() for name, tensor in old.items()}
    for name, tensors in (("old", old), ("post", post)):
        save(tmp_path / name, tensors, scheme)
    exact = {name: tensor.float() if scheme == "int4" else tensor for name, tensor in numbers(tmp_path / "post").items()}
    save(tmp_path / "plain", exact)
    one = merged(tmp_path, tmp_path / "old", [(tmp_path / "post", tmp_path / "old", 0.7)], "one")
    other = merged(tmp_path, tmp_path / "old", [(tmp_path / "plain", tmp_path / "old", 0.7)], "other")
    oracle.assert_same(oracle.load(one), oracle.load(other))


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
def test_workers_on_ray_do_not_change_a_byte(tmp_path, models):
    new, old, post = models
    reference = digests(merged(tmp_path, new, [(post, old, 0.7)], "one", shard_size=30_000))
    given = ({"post": str(post), "base": str(old), "weight": 0.7},)
    api.merge(Recipe(base=str(new), deltas=given, output=str(tmp_path / "two"), shard_size=30_000), engine="ray", workers=2)
    assert digests(tmp_path / "two") == reference


def test_a_merge_that_lost_a_shard_and_its_commit_goes_on_to_the_same_bytes(tmp_path, models):
    new, old, post = models
    out = merged(tmp_path, new, [(post, old, 0.7)], shard_size=30_000)
    reference = digests(out)
    assert len(reference) > 1
    (out / ".paramdelta" / "commit.json").unlink()
    lost = max(out.glob("*.safetensors"))
    lost.unlink()
    merged(tmp_path, new, [(post, old, 0.7)], shard_size=30_000)
    assert digests(out) == reference
    assert api.verify(str(out), deep=True, recompute=1.0)["problems"] == []
