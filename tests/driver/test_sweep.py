"""Sweeps: one reading of the inputs, one output a point, each as a merge of it alone would be."""

import filecmp
import json
import shutil

import pytest

from paramdelta_dist import api
from paramdelta_dist.driver.sizing import GPU_LIBRARIES
from paramdelta_dist.engine.machine import torch_is_for_gpus
from paramdelta_dist.errors import NonFinite, RecipeError
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests import oracle
from tests.cli.test_errors import run
from tests.faults import fault_proxy
from tests.models import ARCHITECTURES, make_models, recipe, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    old, post, new = make_models(tmp_path_factory.mktemp("models"), ARCHITECTURES["llama"])
    return new, post, old


def swept(models, output, sweep, **more):
    return recipe(*models, output, sweep=sweep, shard_size="100KB", deltas=({"post": str(models[1]), "base": str(models[2])},), **more)


def assert_same_files(one, other):
    names = sorted(path.name for path in one.glob("*.safetensors*"))
    assert names
    assert names == sorted(path.name for path in other.glob("*.safetensors*"))
    for name in [*names, "config.json"]:
        assert filecmp.cmp(one / name, other / name, shallow=False), name


@pytest.mark.parametrize(
    ("sweep", "more"),
    [
        ({"weight": [0, 0.5, 0.75, 1.0, 1.5]}, {}),
        ({"density": [0.2, 0.6], "weight": [1.0, 0.3]}, {"method": "ties"}),
        ({"deltas.0.weight": [0.25, 1.0]}, {"dtype": "float32"}),
    ],
    ids=["alpha", "ties grid", "one delta"],
)
def test_each_point_has_the_bytes_of_a_merge_of_it_alone(models, tmp_path, sweep, more):
    made = swept(models, tmp_path / "sweep", sweep, **more)
    result = api.merge(made, workers=2)
    assert [point["name"] for point in result.report["points"]] == list(made.points)
    for name, point in made.points.items():
        alone = api.merge(point.with_output(str(tmp_path / "alone" / name)), workers=1)
        assert_same_files(tmp_path / "sweep" / name, tmp_path / "alone" / name)
        [told] = [each for each in result.report["points"] if each["name"] == name]
        assert told["fingerprint"] == alone.fingerprint
        assert api.verify(told["output"], deep=True, recompute=1.0)["ok"]


def test_five_points_are_made_from_one_reading(models, tmp_path):
    one = api.merge(swept(models, tmp_path / "one", {"weight": [0.5]}))
    five = api.merge(swept(models, tmp_path / "five", {"weight": [0, 0.5, 0.75, 1.0, 1.5]}))
    assert one.report["bytes_read"] <= five.report["bytes_read"] <= 1.05 * one.report["bytes_read"]
    assert five.report["requests"] <= 1.05 * one.report["requests"]


def test_tensors_larger_than_a_tile_are_swept_in_step(tmp_path):
    import torch

    torch.manual_seed(3)
    for name in ("new", "post", "old"):
        save_model(tmp_path / name, {"w.weight": torch.randn(3_000, 1_000).bfloat16(), "norm.weight": torch.randn(1_000).bfloat16()})
    made = swept([tmp_path / name for name in ("new", "post", "old")], tmp_path / "out", {"density": [0.3, 0.9]}, method="ties")
    api.merge(made, workers=2, memory=(560 << 20) + (GPU_LIBRARIES if torch_is_for_gpus() else 0))
    for name, point in made.points.items():
        api.merge(point.with_output(str(tmp_path / "alone" / name)), workers=1)
        assert_same_files(tmp_path / "out" / name, tmp_path / "alone" / name)


def test_a_sweep_goes_on_where_it_stopped_and_is_done_once_it_is(models, tmp_path):
    made = swept(models, tmp_path / "out", {"weight": [0.5, 1.0]})
    first = api.merge(made)
    assert first.report["shards"]["made"] > 2
    again = api.merge(made)
    assert again.state == "nothing to do"
    assert [point["state"] for point in again.report["points"]] == ["nothing to do"] * 2
    lost = tmp_path / "out" / "weight=0.5"
    before = oracle.load(lost)
    (lost / ".paramdelta" / "commit.json").unlink()
    next(iter(sorted((lost / ".paramdelta" / "receipts").iterdir()))).unlink()
    mended = api.merge(made)
    assert mended.report["shards"]["made"] == 1
    assert [point["state"] for point in mended.report["points"]] == ["merged", "nothing to do"]
    oracle.assert_same(oracle.load(lost), before)
    wider = api.merge(swept(models, tmp_path / "out", {"weight": [0.5, 1.0, 2.0]}))
    assert [point["state"] for point in wider.report["points"]] == ["nothing to do", "nothing to do", "merged"]
    listed = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [point["values"] for point in listed["points"]] == [{"weight": 0.5}, {"weight": 1.0}, {"weight": 2.0}]


def test_what_stops_one_point_stops_the_sweep_and_says_which_tensor(models, tmp_path):
    import torch

    new, post, old = models
    broken = tmp_path / "broken"
    shutil.copytree(post, broken)
    tensors = oracle.load(post)
    name = sorted(tensors)[-1]
    tensors[name].view(torch.int16)[..., -1] = 0x7F80  # infinity
    save_model(tmp_path / "post", tensors, config=json.loads((post / "config.json").read_text()))
    made = swept((new, tmp_path / "post", old), tmp_path / "out", {"weight": [0, 0.5, 1.0]})
    with pytest.raises(NonFinite, match=name):
        api.merge(made)
    assert not list((tmp_path / "out").rglob("commit.json"))


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{weigth: [0.5, 1]}", "did you mean 'weight'"),
        ("{weight: 0.5}", "should be a list of values"),
        ("{weight: [1, 1]}", "1 is there twice"),
        ("{weight: [1, x]}", "should be a finite number"),
        ("{deltas.1.weight: [1]}", "there is no deltas.1"),
        ("{weight: [" + ", ".join(map(str, range(65))) + "]}", "at most 64"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_in_words(sweep, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(f"base: /new\ndeltas:\n  - post: /post\noutput: /out\nsweep: {sweep}\n", where="recipe")


def test_a_weight_that_is_given_and_swept_is_refused():
    with pytest.raises(RecipeError, match="has a weight of its own"):
        parse_recipe("base: /new\ndeltas:\n  - {post: /post, weight: 2}\noutput: /out\nsweep: {weight: [1, 2]}\n", where="recipe")


def test_the_command_line_names_every_point(models, tmp_path):
    new, post, old = models
    text = f"base: {new}\ndeltas:\n  - post: {post}\n    base: {old}\noutput: {tmp_path / 'out'}\nsweep: {{weight: [0.5, 1]}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    done = run("merge", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weight=0.5" in done.stdout
    assert "weight=1" in done.stdout
    planned = run("plan", "recipe.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "2 points" in planned.stdout


@pytest.mark.parametrize("report_page", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "report"])
def test_a_server_that_counts_sees_one_reading_for_five_points(tmp_path, s3_server, monkeypatch, report_page):
    """What is asked of the server, by its side of the wire: bytes and requests of the inputs, and bytes of everything."""
    import torch

    bucket = s3_server.make_bucket()
    generator = torch.Generator().manual_seed(4)
    for name in ("new", "post", "old"):
        tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(1_000, 1_000, generator=generator).bfloat16() for n in range(8)}
        for path in save_model(tmp_path / name, tensors, files=2).iterdir():
            s3_server.client().put_object(Bucket=bucket, Key=f"{name}/{path.name}", Body=path.read_bytes())
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    with fault_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        def counted(name, weights):
            """Requests for the inputs, their bytes, and bytes of everything that was asked for."""
            proxy.clear()
            folders = [f"s3://{bucket}/{model}" for model in ("new", "post", "old")]
            api.merge(swept(folders, f"s3://{bucket}/{name}", {"weight": weights}), workers=2, report_page=report_page)
            got = [(path, size) for method, path, size in proxy.replies if method == "GET"]
            inputs = [size for path, size in got if path.startswith(tuple(f"/{bucket}/{model}/" for model in ("new", "post", "old")))]
            return len(inputs), sum(inputs), sum(size for _, size in got)

        one, five = counted("one", [0.5]), counted("five", [0, 0.5, 0.75, 1.0, 1.5])
    assert one[1] >= 3 * 16_000_000
    assert all(more <= 1.05 * less for less, more in zip(one, five, strict=True)), (one, five)
