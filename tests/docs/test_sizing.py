"""The examples of docs/operations.md, computed by `plan` again."""

import json
import re
import subprocess
import sys

import pytest

from benchmarks.checkpoints import MODELS, experts, llama, sparse
from paramdelta_dist.engine.metrics import METRICS
from tests.docs.pages import DOCS
from tests.servers import http_server

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
DENSE = lambda: llama(layers=80, hidden=8192, intermediate=28_672, kv=1024, vocabulary=128_256, tied=False)  # noqa: E731
EXPERTS = lambda: experts(layers=64, experts=1040, hidden=4096, intermediate=1280, kv=1024, vocabulary=128_256)  # noqa: E731


@pytest.mark.parametrize(
    ("column", "shapes", "files"), [(1, DENSE, 30), pytest.param(2, EXPERTS, 200, marks=pytest.mark.slow)], ids=["70B", "1T"]
)
def test_the_table_of_examples_is_what_plan_says(tmp_path, monkeypatch, column, shapes, files):
    tensors = shapes()
    for name in MODELS:
        sparse(tmp_path / name, tensors, files=files, config=CONFIG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with http_server(tmp_path) as root:
        new, post, old = (f"{root}/{name}" for name in MODELS)
        arguments = ["--base", new, "--delta", f"{post}:{old}", "--output", "s3://models/out", "--engine", "ray", "--bandwidth", "5GB"]
        done = subprocess.run([sys.executable, "-m", "paramdelta_dist", "plan", *arguments], capture_output=True, text=True, check=True)
    table = {cells[0]: cells[column] for cells in _rows()}
    for row in ("to read", "to write"):
        assert re.search(rf"^{row} +{re.escape(table[row])}\b", done.stdout, re.M), done.stdout
    assert f" {table['shards of 5 GB']} shards" in done.stdout
    assert re.search(rf"^memory +{re.escape(table['memory of a worker'])} projected", done.stdout, re.M), done.stdout
    assert re.search(rf"^time +{re.escape(table['at 5 GB/s to and from storage'])} at 5 GB/s", done.stdout, re.M), done.stdout


def _rows():
    lines = (DOCS / "operations.md").read_text().partition("| --- |")[2].splitlines()[1:]
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_metrics_is_the_code_s():
    rows = re.findall(r"^\| `(ray_\w+)`(?: \{(\w+)\})? \| (.*) \|$", (DOCS / "operations.md").read_text(), re.M)
    assert {(name, label) for name, label, _ in rows} == {(f"ray_{metric.name}_total", metric.label) for metric in METRICS}
    for name, label, words in rows:
        (metric,) = (metric for metric in METRICS if f"ray_{metric.name}_total" == name)
        assert not label or set(re.findall(r"`(\w+)`", words)) == set(metric.values)


def test_every_field_of_the_report_that_the_page_names_is_one(tmp_path):
    """`--json` of a small merge has them."""
    from paramdelta_dist import api
    from paramdelta_dist.cli import demo
    from paramdelta_dist.recipe.yaml_text import parse_recipe

    demo.make_models(tmp_path)
    result = api.merge(parse_recipe(demo.RECIPE.format(folder=tmp_path), where="demo"))
    page = (DOCS / "operations.md").read_text()
    paragraph = page[page.index("**How it went**") : page.index("**For a nightly job**")]
    named = set(re.findall(r"`([a-z_]+)`", paragraph))
    assert len(named) >= 6
    assert named <= set(json.loads(json.dumps(dict(result.report))))
