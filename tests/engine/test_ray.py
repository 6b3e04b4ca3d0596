"""The Ray executor against a real Ray: a lost worker costs time only, and what cannot work is said."""

import json
import os
import signal
import subprocess
import sys

import pytest
import ray
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.cli.progress import ProgressLines
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.engine.schedule import Times
from paramdelta_dist.errors import EngineError, NonFinite
from tests.executors import on_ray
from tests.models import recipe, save_model
from tests.stop_after_first import Watcher, weights


@pytest.fixture
def models(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(1000, 300, generator=generator) for n in range(24)}
    return [
        save_model(tmp_path / name, {n: t * scale for n, t in tensors.items()}, files=2)
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    ]


@pytest.fixture
def quiet(models, tmp_path):
    """The bytes of an undisturbed local run."""
    api.merge(recipe(*models, tmp_path / "quiet", shard_size="1MB"), workers=1)
    return weights(tmp_path / "quiet")


@pytest.mark.usefixtures("on_shared_ray")
def test_a_killed_worker_costs_its_shards_and_nothing_else(models, quiet, tmp_path):
    watcher = Watcher(lambda receipt: os.kill(int(receipt.worker.rpartition(":")[2]), signal.SIGKILL))
    result = api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), engine="ray", workers=2, observer=watcher)
    assert weights(tmp_path / "out") == quiet
    assert result.report["shards"] == {"made": 24, "kept": 0}
    assert len({receipt.worker for receipt in watcher.receipts}) >= 2
    assert watcher.bytes == watcher.total
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
def test_progress_tells_of_the_workers_there_are_and_of_what_was_tried_again(models, tmp_path, capsys):
    class Lines(ProgressLines):
        killed = False

        def finished(self, receipt):
            if not self.killed:
                os.kill(int(receipt.worker.rpartition(":")[2]), signal.SIGKILL)
            self.killed = True
            super().finished(receipt)

    resources = Resources("ray", workers=2, opener=on_ray(times=Times(look=0.1)))
    result = merge_with(recipe(*models, tmp_path / "out", shard_size="1MB"), resources, observer=Lines(line_seconds=0.0))
    told = [event for line in capsys.readouterr().err.splitlines() if line.startswith("{") and (event := json.loads(line))]
    lines = [event for event in told if event["event"] == "progress"]
    assert lines[0]["workers"] == 0, "before the first worker came"
    assert {1, 2} & {event["workers"] for event in lines}
    assert max(event["workers"] for event in lines) <= 2
    assert lines[-1]["retries"] == result.report["retries"] >= 1


@pytest.mark.usefixtures("on_shared_ray")
def test_an_error_of_the_input_comes_out_as_itself_and_ends_the_job(tmp_path):
    bad = torch.ones(500, 500)
    bad[3, 4] = float("inf")
    new, post, old = (
        save_model(tmp_path / n, {"w": w}) for n, w in (("new", torch.ones(500, 500)), ("post", bad), ("old", torch.ones(500, 500)))
    )
    with pytest.raises(NonFinite, match="element 1504"):
        api.merge(recipe(new, post, old, tmp_path / "out"), engine="ray", workers=1)
    assert not ray.is_initialized()
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.usefixtures("on_shared_ray")
def test_workers_that_cannot_be_placed_end_with_a_diagnosis(models, tmp_path):
    greedy = Resources("ray", workers=1, patience=2.0, opener=on_ray(memory=1 << 45))
    with pytest.raises(EngineError, match=r"(?s)no worker could be started.*1 CPU and 32 TiB of memory.*--memory") as raised:
        merge_with(recipe(*models, tmp_path / "out"), greedy)
    assert raised.value.exit_code == 75


def test_an_address_where_no_cluster_is_ends_with_75(models, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1") as raised:
        merge_with(recipe(*models, tmp_path / "out"), Resources("ray", opener=on_ray(connect_seconds=0.5)))
    assert raised.value.exit_code == 75


@pytest.mark.slow
def test_an_embedded_ray_starts_beside_a_cluster_that_runs_on_the_same_machine(models, quiet, tmp_path, shared_ray):
    """In a process of its own: one that has had a Ray inside cannot join another that was there before."""
    (tmp_path / "recipe.yaml").write_text("base: new\ndeltas: [{post: post, base: old}]\noutput: out\nshard_size: 1MB\n")
    command = [sys.executable, "-m", "paramdelta_dist", "merge", "recipe.yaml", "--engine", "ray", "--workers", "2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "out") == quiet
    report = json.loads((tmp_path / "out/.paramdelta/report.json").read_text())
    assert (report["nodes"], report["shards"]) == (1, {"made": 24, "kept": 0})
