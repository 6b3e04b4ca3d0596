"""`paramdelta-dist analyze` as its user meets it: what is printed, what is written where, and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import save_model
from tests.terminal import call

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path):
    generator = torch.Generator().manual_seed(4)
    for name, scale in (("old", 0.0), ("post", 1.0), ("other", 2.0), ("new", 3.0)):
        tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(40, 30) for n in range(3)}
        moved = {key: (t + scale * 1e-2 * torch.randn(t.shape, generator=generator)).bfloat16() for key, t in tensors.items()}
        save_model(tmp_path / name, moved)
    save_model(tmp_path / "odd", {"w": torch.ones(3)})
    return tmp_path


def run(here, *arguments, **environment):
    return call("analyze", *arguments, cwd=here, **environment)


def test_it_prints_the_most_important_and_writes_a_folder(here):
    done = run(here, "--base", "new", "--delta", "post:old", "--delta", "other:old:0.5")
    assert done.returncode == 0, done.stderr
    for words in ("post", "other", "new base − old", "whole model", "mean of tensors", "3 tensors, 3,600 parameters"):
        assert words in done.stdout
    written = sorted(path.name for path in (here / "analysis").iterdir())
    assert written == ["group-pairs.parquet", "groups.parquet", "report.html", "tensor-pairs.parquet", "tensors.parquet"]


def test_models_of_a_recipe_without_deltas_count_as_deltas_of_the_first_and_weights_are_the_recipes(here):
    (here / "linear.yaml").write_text(
        "method: linear\nmodels:\n  - {model: old}\n  - {model: post, weight: 0.25}\n  - {model: other}\noutput: out\n"
    )
    document = json.loads(run(here, "linear.yaml", "--output", "report", "--json").stdout)
    assert [(d["label"], d["weight"], d["base"]) for d in document["deltas"]] == [
        ("post", 0.25, str(here / "old")),
        ("other", 1.0, str(here / "old")),
    ]
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--base", "new", "--delta", "odd:old"), 3, "not homologous"),
        (("--base", "new", "--delta", "missing"), 3, "missing"),
        (("--base", "new"), 2, "--delta"),
        (("--base", "new", "--delta", "post:old", "--memory", "100MiB"), 2, "--memory"),
        (("nowhere.yaml",), 2, "no recipe"),
    ],
)
def test_what_cannot_work_is_one_message_and_leaves_nothing(here, arguments, code, named):
    before = sorted(here.rglob("*"))
    done = run(here, *arguments)
    assert done.returncode == code, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(here.rglob("*")) == before


def test_the_report_goes_to_a_bucket_from_models_in_it(here, s3_server, monkeypatch):
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{s3_server.make_bucket()}"
    for name in ("new", "post", "old"):
        store = open_store(f"{bucket}/{name}", StorageConfig())
        for path in (here / name).iterdir():
            store.write(path.name, path.read_bytes())
    flags = ("--base", f"{bucket}/new", "--delta", f"{bucket}/post:{bucket}/old", "--output", f"{bucket}/report")
    document = json.loads(run(here, *flags, "--json").stdout)
    assert document["output"] == f"{bucket}/report"
    assert set(open_store(f"{bucket}/report", StorageConfig()).list()) == set(document["files"])


def test_a_pass_stays_under_its_projection_with_a_tensor_larger_than_its_buffers(tmp_path):
    tensors = {"big": torch.randn(1 << 16).bfloat16().repeat(512), "small": torch.randn(100).bfloat16()}
    for name in ("new", "post", "old"):
        save_model(tmp_path / name, tensors)
    code = (
        "import sys; from paramdelta_dist.cli import commands as cli; from paramdelta_dist.engine.machine import peak_memory\n"
        "try: cli.app(sys.argv[1:], standalone_mode=False)\n"
        "finally: print(peak_memory(), file=sys.stderr)"
    )
    flags = ["--base", "new", "--delta", "post:old", "--memory", "512MiB", "--workers", "2", "--json"]
    command = [sys.executable, "-c", code, "analyze", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True)
    peak = int(done.stderr.splitlines()[-1])
    assert peak <= json.loads(done.stdout)["projected_memory"] <= 512 << 20


def test_a_weight_that_rules_choose_is_said_to_be_chosen_by_rules(here):
    rules = "base: new\ndeltas:\n  - {post: post, base: old, weight: [{layers: 0-1, value: 0.0}, {value: 0.5}]}\noutput: out\n"
    (here / "rules.yaml").write_text(rules)
    document = json.loads(run(here, "rules.yaml", "--json").stdout)
    assert document["deltas"][0]["weight"] is None
    assert document["tensors"] == 3
    assert "by rules" in (here / "analysis" / "report.html").read_text()
