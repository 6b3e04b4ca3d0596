"""`merge --report` of a sweep: what each point wrote, measured as it was made, and the points side by side."""

import json
import math
import re
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.analysis.probes import EVERY
from paramdelta_dist.planning.chunks import MEASURE_CHUNK
from paramdelta_dist.storage import StorageConfig, open_store
from tests import oracle
from tests.analysis.test_page import browse, needs_browser
from tests.models import recipe, save_model

BIG = 3 * EVERY * MEASURE_CHUNK + 1234
WEIGHTS = [0, 0.5, 1.0, 1.5]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(2)
    old = {
        "model.embed_tokens.weight": 0.02 * torch.randn(BIG, generator=generator),
        **{f"model.layers.{n}.mlp.up_proj.weight": 0.02 * torch.randn(300, 70, generator=generator) for n in range(3)},
        "model.norm.weight": torch.ones(128),
        "steps": torch.arange(4),
    }

    def moved(scale):
        return {
            name: (t + scale * torch.randn(t.shape, generator=generator)).bfloat16() if t.is_floating_point() else t
            for name, t in old.items()
        }

    return [save_model(root / name, moved(scale), files=2) for name, scale in (("new", 4e-3), ("post", 1e-3), ("old", 0.0))]


def swept(models, output, sweep, **more):
    new, post, old = (str(model) for model in models)
    return recipe(new, None, None, output, sweep=sweep, shard_size="1MB", deltas=({"post": post, "base": old},), **more)


def rows(folder, name):
    return pq.read_table(folder / "report" / name).to_pylist()


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    result = api.merge(swept(models, out, {"weight": WEIGHTS}), workers=2, report_page=True)
    assert result.page == f"{out}/report/report.html"
    return out


def floating(folder):
    return {name: tensor.double() for name, tensor in oracle.load(folder).items() if tensor.is_floating_point()}


def test_each_point_is_measured_against_the_base_and_every_post(models, made):
    base, post = floating(models[0]), floating(models[1])
    found = {(row["point"], row["tensor"]): row for row in rows(made, "tensors.parquet")}
    assert len(found) == len(WEIGHTS) * len(base)
    for weight in WEIGHTS:
        for name, tensor in floating(made / f"weight={weight}").items():
            row, exact = found[f"weight={weight}", name], tensor.numel() <= MEASURE_CHUNK
            added, away = tensor - base[name], tensor - post[name]
            near = {"rel": 1e-12 if exact else 0.02, "abs": 1e-15}
            assert row["weight"] == weight
            assert row["elements"] == tensor.numel()
            assert row["base_norm"] == pytest.approx(base[name].norm().item(), **near)
            assert row["added_norm"] == row["distances"][0] == pytest.approx(added.norm().item(), **near)
            assert row["distances"][1] == pytest.approx(away.norm().item(), **near)
            assert row["relative_norm"] == pytest.approx((added.norm() / base[name].norm()).item(), **near)
            assert row["unchanged_share"] == pytest.approx((added == 0).double().mean().item(), rel=0 if exact else 0.1, abs=1e-12)
            assert row["max_abs"] == added.abs().max().item() if exact else row["max_abs"] <= added.abs().max().item()


def test_groups_are_their_tensors_laid_end_to_end(models, made):
    base, out = floating(models[0]), floating(made / "weight=1.5")
    found = {(row["point"], row["component"], row["layer"]): row for row in rows(made, "groups.parquet")}
    mlp = [name for name in base if ".mlp." in name]
    added = math.sqrt(sum((out[name] - base[name]).square().sum().item() for name in mlp))
    assert found["weight=1.5", "mlp", None]["added_norm"] == pytest.approx(added, rel=1e-12)
    whole = math.sqrt(sum((out[name] - base[name]).square().sum().item() for name in base))
    assert found["weight=1.5", None, None]["added_norm"] == pytest.approx(whole, rel=0.02)


def test_points_are_compared_with_each_other(made):
    outputs = {f"weight={weight}": floating(made / f"weight={weight}") for weight in WEIGHTS}
    found = rows(made, "pairs.parquet")
    assert len(found) == 6
    for row in found:
        one, other = outputs[row["first"]], outputs[row["second"]]
        apart = math.sqrt(sum((one[name] - other[name]).square().sum().item() for name in one))
        assert row["distance"] == pytest.approx(apart, rel=0.06)  # told from 4096 numbers and one block in 32


def test_the_bytes_are_those_of_a_sweep_without_and_the_inputs_are_read_once(models, made, tmp_path):
    plain = api.merge(swept(models, tmp_path / "plain", {"weight": WEIGHTS}), workers=2)
    one = api.merge(swept(models, tmp_path / "one", {"weight": WEIGHTS[-1:]}), workers=2)
    for weight in WEIGHTS:
        oracle.assert_same(oracle.load(made / f"weight={weight}"), oracle.load(tmp_path / "plain" / f"weight={weight}"))
        assert api.verify(str(made / f"weight={weight}"), deep=True)["ok"]
    told = json.loads((made / "weight=1.5" / ".paramdelta" / "report.json").read_text())
    assert told["bytes_read"] == plain.report["bytes_read"] <= 1.05 * one.report["bytes_read"]
    assert plain.page is None
    assert not list((tmp_path / "plain").rglob("*compared*"))


def test_a_finished_sweep_is_left_alone_and_keeps_its_report(models, made):
    before = (made / "report" / "report.html").read_bytes(), (made / "sweep.json").read_bytes()
    assert json.loads(before[1])["report"] == "report/report.html"
    for report_page in (True, False):
        again = api.merge(swept(models, made, {"weight": WEIGHTS}), report_page=report_page)
        assert (again.state, again.page) == ("nothing to do", None)
        assert ((made / "report" / "report.html").read_bytes(), (made / "sweep.json").read_bytes()) == before


def test_points_made_in_several_runs_are_all_compared_but_for_those_that_were_not_measured(models, tmp_path):
    out = tmp_path / "out"
    api.merge(swept(models, out, {"weight": [0.5]}), report_page=True)
    api.merge(swept(models, out, {"weight": [0.5, 2.0]}))
    assert "report" not in json.loads((out / "sweep.json").read_text())
    api.merge(swept(models, out, {"weight": [0.5, 2.0, 1.0]}), report_page=True)
    assert {row["point"] for row in rows(out, "groups.parquet")} == {"weight=0.5", "weight=1.0"}
    html = (out / "report" / "report.html").read_text()
    assert re.search(r"<code>weight=2\.0</code>: made before, at least in part, without being measured", html)
    [pair] = rows(out, "pairs.parquet")
    apart = math.sqrt(
        sum((t - floating(out / "weight=1.0")[name]).square().sum().item() for name, t in floating(out / "weight=0.5").items())
    )
    assert pair["distance"] == pytest.approx(apart, rel=0.06)


def test_a_tensor_that_is_not_finite_is_named_and_in_no_sum(models, tmp_path):
    bad = {name: tensor.clone() for name, tensor in oracle.load(models[1]).items()}
    bad["model.norm.weight"][5] = float("nan")
    post = save_model(tmp_path / "post", bad)
    api.merge(
        swept((models[0], post, models[2]), tmp_path / "out", {"weight": [0.5, 1.0]}, allow_nonfinite=True), workers=1, report_page=True
    )
    assert "NaN or infinity" in (tmp_path / "out" / "report" / "report.html").read_text()
    for row in rows(tmp_path / "out", "groups.parquet"):
        assert row["component"] != "norm"
        assert math.isfinite(row["added_norm"])
    assert all(math.isfinite(row["distance"]) for row in rows(tmp_path / "out", "pairs.parquet"))


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
def test_on_ray_and_s3_the_figures_are_the_same(models, made, tmp_path, s3_server, monkeypatch):
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{s3_server.make_bucket()}"
    result = api.merge(swept(models, f"{bucket}/out", {"weight": WEIGHTS}), engine="ray", workers=2, report_page=True)
    assert result.page == f"{bucket}/out/report/report.html"
    store = open_store(f"{bucket}/out/report", StorageConfig())
    (tmp_path / "report").mkdir()
    for name in ("tensors.parquet", "pairs.parquet"):
        (tmp_path / "report" / name).write_bytes(store.read(name, limit=1 << 24))
        for here, there in zip(rows(made, name), rows(tmp_path, name), strict=True):
            for key, value in here.items():
                assert there[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, (float, list)) else value), key


def test_a_grid_of_a_method_that_keeps_few_parameters_says_how_many_it_left(models, tmp_path):
    made = swept(models, tmp_path / "out", {"density": [0.2, 0.6], "weight": [0.5, 1.0]}, method="ties")
    api.merge(made, workers=2, report_page=True)
    whole = {row["point"]: row for row in rows(tmp_path / "out", "groups.parquet") if row["component"] is None and row["layer"] is None}
    assert list(whole) == list(made.points)
    assert whole["density=0.2,weight=1.0"]["unchanged_share"] > 0.7
    assert whole["density=0.6,weight=1.0"]["unchanged_share"] < 0.5
    html = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "Over density and weight" in html


@needs_browser
def test_the_page_asks_for_nothing_is_narrow_enough_for_a_phone_and_sorts(made, tmp_path):
    html = (made / "report" / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", html)
    for part in ("The points", "Over weight", "Where it is added", "far the points are from each other", "How the sweep went", "estimates"):
        assert part in html
    press = """<script>
      const table = document.querySelector("table.sortable"), heads = [...table.querySelectorAll("thead button")];
      const values = (column) => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.v));
      heads[1].click(); const down = values(1);
      heads[0].click(); heads[0].click(); const up = values(0);
      document.title = JSON.stringify({down, up, width: document.documentElement.scrollWidth, window: innerWidth});
    </script>"""
    copy = tmp_path / "page.html"
    copy.write_text(html + press)
    told = json.loads(re.search(r"<title>(\{.*?\})</title>", browse(copy, "--dump-dom"))[1])
    assert told["down"] == sorted(told["down"], reverse=True)
    assert told["up"] == WEIGHTS
    assert told["width"] <= told["window"]


def test_names_of_a_stranger_are_text_and_nothing_else(models, tmp_path):
    evil = {name: tensor for name, tensor in oracle.load(models[0]).items() if tensor.numel() < MEASURE_CHUNK}
    evil["<script>alert(1)</script>"] = torch.ones(4).bfloat16()
    folders = [save_model(tmp_path / name, evil) for name in ("new", "post", "old")]
    shutil.copytree(folders[0], tmp_path / "<img src=x>")
    made = swept((tmp_path / "<img src=x>", *folders[1:]), tmp_path / "out", {"weight": [0.5, 1.0]})
    api.merge(made, report_page=True)
    html = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "Nowhere: every point is the base" in html


def test_analyze_tells_how_far_the_points_would_be_before_any_is_made(models, made, tmp_path):
    recipe = swept(models, tmp_path / "unused", {"weight": WEIGHTS})
    found = api.analyze(recipe, str(tmp_path / "report"))
    assert [delta["weight"] for delta in found["deltas"]] == [1.0]
    html = (tmp_path / "report" / "report.html").read_text()
    card = re.search(r"The points of the sweep</h3>.*?</table>", html)[0]
    told = {point: float(away) for point, away in re.findall(r"<tr><th>(weight=[^<]*)</th><td>([\d.]+) %</td>", card)}
    whole = {row["point"]: row for row in rows(made, "groups.parquet") if row["component"] is None and row["layer"] is None}
    assert told.keys() == whole.keys()
    for point, away in told.items():
        assert away == pytest.approx(100 * whole[point]["relative_norm"], rel=0.03, abs=1e-9)
