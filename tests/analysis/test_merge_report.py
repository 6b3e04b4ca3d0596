"""`merge --report`: the same bytes, figures from a sample of what was read anyway, and who made what when."""

import json
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.analysis.page.timeline import run_section, throughput
from paramdelta_dist.analysis.probes import EVERY, Lane, sample
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.errors import NonFinite
from paramdelta_dist.planning.chunks import MEASURE_CHUNK
from paramdelta_dist.storage import StorageConfig, open_store
from tests import oracle
from tests.executors import acting
from tests.models import recipe, save_model

BIG = 3 * EVERY * MEASURE_CHUNK + 1234


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(2)
    old = {
        "model.embed_tokens.weight": 0.02 * torch.randn(BIG, generator=generator),
        "model.layers.0.mlp.up_proj.weight": 0.02 * torch.randn(300, 70, generator=generator),
        "model.norm.weight": torch.ones(128),
        "steps": torch.arange(4),
    }

    def moved(scale):
        return {
            name: (t + scale * torch.randn(t.shape, generator=generator)).bfloat16() if t.is_floating_point() else t
            for name, t in old.items()
        }

    return [save_model(root / name, moved(scale), files=2) for name, scale in (("new", 4e-3), ("post", 1e-3), ("old", 0.0))]


def rows(folder, name):
    return pq.read_table(folder / name).to_pylist()


def report(out):
    return out / ".paramdelta" / "report"


@pytest.fixture(scope="module")
def merged(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "out"
    api.merge(recipe(*models, out, weight=0.7, shard_size="1MB"), workers=2, report_page=True)
    return out


def test_the_bytes_are_those_of_a_merge_without_and_the_output_verifies(models, merged, tmp_path):
    api.merge(recipe(*models, tmp_path / "plain", weight=0.7, shard_size="1MB"), workers=2)
    oracle.assert_same(oracle.load(merged), oracle.load(tmp_path / "plain"))
    assert api.verify(str(merged), deep=True)["ok"]
    assert {p.name for p in report(merged).iterdir()} >= {"report.html", "tensors.parquet", "groups.parquet"}
    assert sorted(p.name for p in (tmp_path / "plain" / ".paramdelta").iterdir()) == ["commit.json", "plan.json", "receipts", "report.json"]


def test_a_sampled_figure_is_near_the_whole_one_and_a_small_tensors_is_exact(models, merged, tmp_path):
    api.analyze(recipe(*models, tmp_path / "unused"), str(tmp_path / "whole"))
    pairs = list(zip(rows(tmp_path / "whole", "tensors.parquet"), rows(report(merged), "tensors.parquet"), strict=True))
    assert [one["tensor"] for one, _ in pairs] == [other["tensor"] for _, other in pairs]
    for whole, sampled in pairs:
        assert sampled["elements"] == whole["elements"]
        if whole["elements"] <= MEASURE_CHUNK:
            assert sampled == whole
            continue
        for key in ("norm", "base_norm", "relative_norm", "mean_abs", "zero_share"):
            assert sampled[key] == pytest.approx(whole[key], rel=0.1 if key == "zero_share" else 0.02)
        assert 0.5 * whole["max_abs"] < sampled["max_abs"] <= whole["max_abs"]
        assert sum(sampled["histogram"]) == pytest.approx(sum(whole["histogram"]), rel=0.01)


def test_the_page_tells_who_made_what_and_that_figures_are_estimates(merged):
    html = (report(merged) / "report.html").read_text()
    for name in ("model-00001-of", "How the merge went", "Who made what when", "All figures are estimates"):
        assert name in html
    assert html.count('rect class="lane') == len(list(merged.glob("model-*.safetensors")))


@pytest.mark.parametrize("elements", [1, MEASURE_CHUNK, MEASURE_CHUNK + 1, 5 * MEASURE_CHUNK, EVERY * MEASURE_CHUNK, BIG])
def test_a_sample_is_the_same_however_the_tensor_is_cut(elements):
    def covered(cuts):
        edges = sorted({0, elements, *(cut for cut in cuts if cut < elements)})
        found = np.zeros(elements, bool)
        for first, last in pairwise(edges):
            for begin, end in sample(elements, first, last):
                assert not found[begin:end].any()
                found[begin:end] = True
        return found

    whole = covered([])
    assert whole.any()
    assert (covered(range(0, elements, 64 * 999)) == whole).all()
    assert (covered([MEASURE_CHUNK // 2, 3 * MEASURE_CHUNK + 64, 17 * MEASURE_CHUNK]) == whole).all()
    if elements > EVERY * MEASURE_CHUNK:
        assert 0.5 < whole.mean() * EVERY < 2


def test_a_merge_that_was_stopped_has_the_whole_report_when_it_has_gone_on(models, tmp_path):
    new, post, old = models
    bad = {name: tensor.clone() for name, tensor in oracle.load(post).items()}
    bad["model.norm.weight"][5] = float("nan")
    names = ["model.norm.weight", *(name for name in bad if name != "model.norm.weight")]
    save_model(tmp_path / "post", bad, files=2)
    out, made = tmp_path / "out", recipe(new, tmp_path / "post", old, tmp_path / "out", shard_size="1MB")
    with pytest.raises(NonFinite):
        api.merge(made, workers=1, report_page=True)
    assert names
    kept = {path.name: path.read_bytes() for path in (out / ".paramdelta" / "watched").iterdir()}
    assert kept
    allowed = made.model_copy(update={"allow_nonfinite": True})
    api.merge(allowed, workers=1, overwrite=True, report_page=True)
    assert {row["tensor"] for row in rows(report(out), "tensors.parquet")} == set(names) - {"steps"}
    assert "NaN or infinity" in (report(out) / "report.html").read_text()


def test_shards_kept_from_an_earlier_run_are_in_the_report(models, tmp_path):
    made = recipe(*models, tmp_path / "out", shard_size="1MB")

    def stop():
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        merge_with(made, acting(after=stop), report_page=True)
    result = api.merge(made, workers=1, report_page=True)
    assert result.report["shards"]["made"] == 0
    assert len(rows(report(tmp_path / "out"), "tensors.parquet")) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
def test_on_ray_and_s3_the_report_is_the_same_but_for_the_run(models, merged, tmp_path, s3_server, monkeypatch):
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{s3_server.make_bucket()}"
    api.merge(recipe(*models, f"{bucket}/out", weight=0.7, shard_size="1MB"), engine="ray", workers=2, report_page=True)
    store = open_store(f"{bucket}/out/.paramdelta/report", StorageConfig())
    for name in ("tensors.parquet", "group-pairs.parquet"):
        (tmp_path / name).write_bytes(store.read(name, limit=1 << 24))
        for here, there in zip(rows(report(merged), name), rows(tmp_path, name), strict=True):
            assert here.keys() == there.keys()
            for key, value in here.items():
                assert there[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
    assert b"Who made what when" in store.read("report.html", limit=1 << 24)


def test_without_it_nothing_of_analysis_is_even_imported(models, tmp_path):
    new, post, old = models
    flags = ["merge", "--base", str(new), "--delta", f"{post}:{old}", "--output", str(tmp_path / "out")]
    code = (
        f"import sys\nfrom paramdelta_dist.cli import commands as cli\ncli.app({flags!r}, standalone_mode=False)\n"
        "print([m for m in sys.modules if m.startswith(('paramdelta_dist.analysis', 'pyarrow'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_throughput_adds_up_to_the_bytes_that_were_written():
    lanes = [Lane("a", "w1", 100.0, [(101.0, 500), (104.0, 1000)]), Lane("b", "w2", 102.0, [(103.0, 10), (110.0, 3000)])]
    points = throughput(lanes, 100.0, 10.0)
    assert sum((b[0] - a[0]) * a[1] for a, b in zip(points[::2], points[1::2], strict=True)) == pytest.approx(4000)
    html = run_section(lanes)
    assert html.count('rect class="lane') == 2
    assert json.dumps("w1").strip('"') in html
