"""Every figure of `analyze`, judged by whole tensors in float64; the same figures for every tile, thread and engine."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.analyze import analyze_with
from paramdelta_dist.checkpoint.components import locate
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import HomologyError, UsageError
from tests import oracle
from tests.models import ARCHITECTURES, make_models, recipe, save_model

NAMES = ("tensors", "tensor-pairs", "groups", "group-pairs")


def tables(folder):
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in NAMES}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    old, post, new = make_models(root, ARCHITECTURES["mixtral_experts"])
    generator = torch.Generator().manual_seed(5)
    second = {}
    for name, tensor in oracle.load(post).items():
        shift = 2e-3 * torch.randn(tensor.shape, generator=generator)
        second[name] = (tensor.float() + shift * (torch.rand(tensor.shape, generator=generator) < 0.3)).bfloat16()
    save_model(root / "second", second, files=3, config=json.loads((old / "config.json").read_text()))
    return {"old": old, "post": post, "new": new, "second": root / "second"}


def two_deltas(models, **more):
    deltas = (
        {"post": str(models["post"]), "base": str(models["old"]), "weight": 0.7},
        {"post": str(models["second"]), "base": str(models["old"]), "weight": -0.4},
    )
    return recipe(models["new"], None, None, models["new"].parent / "out", deltas=deltas, **more)


@pytest.fixture(scope="module")
def found(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    document = api.analyze(two_deltas(models, shard_size="150KB"), str(folder), workers=1)
    return document, tables(folder), folder


@pytest.fixture(scope="module")
def vectors(models):
    """δ of both deltas and the new base's drift, and the old base: {name: float64 array}, each flat."""
    loaded = {key: {n: t.double().numpy().ravel() for n, t in oracle.load(folder).items()} for key, folder in models.items()}
    pairs = (("post", "old"), ("second", "old"), ("new", "old"))
    return [{name: loaded[a][name] - loaded[b][name] for name in loaded[a]} for a, b in pairs], loaded


def close(found, wanted, tolerance=1e-12):
    assert found == pytest.approx(wanted, rel=tolerance, abs=1e-15)


def expected_delta(delta, base):
    magnitude = np.abs(delta)
    bins = np.clip(np.frexp(magnitude[magnitude > 0])[1] - 1 + 48, 0, 63)
    return {
        "elements": len(delta),
        "norm": np.sqrt(np.sum(delta**2)),
        "base_norm": np.sqrt(np.sum(base**2)),
        "relative_norm": np.sqrt(np.sum(delta**2) / np.sum(base**2)),
        "max_abs": magnitude.max(),
        "mean": delta.mean(),
        "mean_abs": magnitude.mean(),
        "zero_share": np.mean(delta == 0),
        "histogram": list(np.bincount(bins, minlength=64)),
    }


def cosine(a, b):
    return np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))


def agreement(a, b):
    both = (a != 0) & (b != 0)
    return np.mean(np.sign(a[both]) == np.sign(b[both])) if both.any() else None


def check_delta(row, delta, base):
    for key, wanted in expected_delta(delta, base).items():
        if key == "mean":  # terms of both signs: small against what is added
            assert row[key] == pytest.approx(wanted, abs=1e-12 * np.abs(delta).mean())
        elif key == "histogram":
            assert row[key] == wanted
        else:
            close(row[key], wanted)


def test_every_tensor_has_the_figures_that_whole_tensors_give(found, vectors):
    (deltas, loaded), (_, tables, _) = vectors, found
    assert len(tables["tensors"]) == 2 * len(loaded["new"])
    for row in tables["tensors"]:
        check_delta(row, deltas[row["delta"]][row["tensor"]], loaded["old"][row["tensor"]])
        assert (row["component"], row["layer"]) == (locate(row["tensor"]).component.value, locate(row["tensor"]).layer)


def test_every_pair_has_its_cosine_and_sign_agreement(found, vectors):
    (deltas, loaded), (_, tables, _) = vectors, found
    assert len(tables["tensor-pairs"]) == 3 * len(loaded["new"])
    for row in tables["tensor-pairs"]:
        a, b = (deltas[row[side]][row["tensor"]] for side in ("first", "second"))
        assert row["cosine"] == pytest.approx(cosine(a, b), abs=1e-12)
        if row["second"] < 2:
            assert row["sign_agreement"] == pytest.approx(agreement(a, b))
        else:
            assert row["sign_agreement"] is None
    assert {(row["first_label"], row["second_label"]) for row in tables["tensor-pairs"]} == {
        ("post", "second"),
        ("post", "new base − old"),
        ("second", "new base − old"),
    }


def members(row, names):
    places = {name: locate(name) for name in names}
    return [
        name
        for name in names
        if (row["component"] in (None, places[name].component.value)) and (row["layer"] is None or row["layer"] == places[name].layer)
    ]


def test_groups_are_their_tensors_laid_end_to_end_and_cosines_also_the_mean_of_tensors(found, vectors):
    (deltas, loaded), (_, tables, _) = vectors, found
    kinds = {(row["component"], row["layer"]) for row in tables["groups"]}
    assert {(None, None), (None, 2), ("expert", None), ("expert", 1), ("router", 0), ("norm", None), ("lm_head", None)} <= kinds
    for row in tables["groups"]:
        names = members(row, loaded["new"])
        check_delta(row, *(np.concatenate([table[n] for n in names]) for table in (deltas[row["delta"]], loaded["old"])))
    for row in tables["group-pairs"]:
        names = members(row, loaded["new"])
        one, other = deltas[row["first"]], deltas[row["second"]]
        ends = [np.concatenate([table[n] for n in names]) for table in (one, other)]
        assert row["cosine"] == pytest.approx(cosine(*ends), abs=1e-12)
        assert row["mean_cosine"] == pytest.approx(np.mean([cosine(one[n], other[n]) for n in names]), abs=1e-12)


def test_the_document_tells_the_whole_model(found, vectors):
    document, tables, folder = found
    whole = [row for row in tables["groups"] if row["component"] is None and row["layer"] is None]
    assert [d["norm"] for d in document["deltas"]] == [row["norm"] for row in whole]
    assert document["parameters"] == sum(len(t) for t in vectors[1]["new"].values())
    assert document["nonfinite_tensors"] == []
    assert 1 <= document["bytes_read"] / (4 * 2 * document["parameters"]) < 1.01
    assert sorted(document["files"]) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({"workers": 1, "memory": 480 << 20, "tile_size": 256 << 10}, id="small tiles"),
        pytest.param({"workers": 4}, id="threads"),
        pytest.param({"engine": "ray", "workers": 2}, id="ray", marks=pytest.mark.slow),
    ],
)
def test_no_figure_depends_on_tiles_threads_engine_or_shards(models, found, tmp_path, request, way):
    if "engine" in way:
        request.getfixturevalue("on_shared_ray")
    analyze_with(two_deltas(models, shard_size="150KB" if way.get("engine") else "1MB"), str(tmp_path), Resources(**way))
    assert tables(tmp_path) == found[1]


def test_big_tensors_are_summed_alike_whatever_the_tile(tmp_path):
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (7,), "big": (1_000_003,), "b": (32768,), "model.layers.0.mlp.up_proj.weight": (300, 701)}
    folders = [
        save_model(tmp_path / name, {n: 1e-3 * torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()})
        for name, dtype in (("new", torch.bfloat16), ("post", torch.float32), ("old", torch.float16))
    ]
    seen = []
    for size in (256 << 10, 1 << 20, 4 << 20):
        analyze_with(recipe(*folders, tmp_path / "out"), str(tmp_path / f"report{size}"), Resources(workers=3, tile_size=size))
        seen.append(tables(tmp_path / f"report{size}"))
    assert seen[0] == seen[1] == seen[2]
    _, post, old = ({n: t.double().numpy().ravel() for n, t in oracle.load(folder).items()} for folder in folders)
    for row in seen[0]["tensors"]:
        check_delta(row, post[row["tensor"]] - old[row["tensor"]], old[row["tensor"]])


def test_a_delta_of_zero_has_no_cosine_and_no_one_divides_by_zero(tmp_path):
    same = {"a": torch.ones(100), "b": torch.zeros(40), "empty": torch.zeros(0, 3), "ids": torch.arange(3)}
    other = {**same, "a": torch.full((100,), 3.0)}
    folders = [save_model(tmp_path / name, tensors) for name, tensors in (("new", same), ("post", same), ("other", other))]
    deltas = ({"post": str(folders[1]), "weight": 0.0}, {"post": str(folders[2]), "weight": 1.0})
    document = api.analyze(recipe(folders[0], None, None, tmp_path / "out", deltas=deltas), str(tmp_path / "report"))
    assert [d["norm"] for d in document["deltas"]] == [0, 20]
    assert [d["zero_share"] for d in document["deltas"]] == [1, 40 / 140]
    assert document["pairs"] == [{"first": "post", "second": "other", "cosine": None, "mean_cosine": None, "sign_agreement": None}]
    rows = {(row["tensor"], row["delta"]): row for row in tables(tmp_path / "report")["tensors"]}
    assert {name for name, _ in rows} == {"a", "b", "empty"}
    assert (rows["a", 1]["relative_norm"], rows["b", 1]["relative_norm"], rows["empty", 1]["mean"]) == (2, None, None)


def test_tensors_that_are_not_finite_are_named_and_left_out_of_sums(tmp_path):
    bad = {"a": torch.ones(100), "w": torch.ones(50)}
    bad["w"][3] = math.inf
    folders = [save_model(tmp_path / n, t) for n, t in (("new", {"a": torch.ones(100) * 2, "w": torch.ones(50)}), ("post", bad))]
    document = api.analyze(recipe(*folders, None, tmp_path / "out"), str(tmp_path / "report"))
    assert document["nonfinite_tensors"] == ["w"]
    assert document["deltas"][0]["norm"] == 10
    assert "w" in (tmp_path / "report" / "report.html").read_text()


def test_models_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, models):
    odd = save_model(tmp_path / "odd", {"w": torch.ones(3)})
    with pytest.raises(HomologyError, match="not homologous"):
        api.analyze(recipe(models["new"], odd, models["old"], tmp_path / "out"), str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_a_report_in_the_output_of_the_merge_is_refused(tmp_path, models):
    with pytest.raises(UsageError, match="choose another folder"):
        api.analyze(recipe(models["new"], models["post"], models["old"], tmp_path / "out"), str(tmp_path / "out" / "report"))
