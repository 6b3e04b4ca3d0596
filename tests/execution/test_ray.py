"""The Ray executor against a real Ray: lost workers and nodes cost time only, and what cannot work is said."""

import os
import signal

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from paramdelta_dist import api
from paramdelta_dist.api import crew, sizing
from paramdelta_dist.errors import EngineError, NonFinite
from paramdelta_dist.execution import ray as ray_engine
from paramdelta_dist.execution import ray_cluster
from tests.models import recipe, save_model


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


def weights(out):
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


class Watcher:
    """Does something once, when the first shard is finished; keeps what it was told."""

    def __init__(self, act=lambda receipt: None):
        self.act, self.receipts, self.bytes = act, [], 0

    def started(self, what, total, *, done=0, details, counts=dict):
        self.total = total

    def advanced(self, size):
        self.bytes += size

    def finished(self, receipt):
        self.receipts.append(receipt)
        if len(self.receipts) == 1:
            self.act(receipt)


def test_a_killed_worker_costs_its_shards_and_nothing_else(models, quiet, tmp_path):
    watcher = Watcher(lambda receipt: os.kill(int(receipt.worker.rpartition(":")[2]), signal.SIGKILL))
    result = api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), engine="ray", workers=2, observer=watcher)
    assert weights(tmp_path / "out") == quiet
    assert result.report["shards"] == {"made": 24, "kept": 0}
    assert len({receipt.worker for receipt in watcher.receipts}) >= 2
    assert watcher.bytes == watcher.total
    assert not ray.is_initialized()


def test_a_lost_node_costs_its_shards_and_a_driver_without_cores_is_enough(models, quiet, tmp_path):
    options = {"include_dashboard": False, "object_store_memory": 80 << 20}
    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": health, **options})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        watcher = Watcher(lambda receipt: cluster.remove_node(nodes[0], allow_graceful=False))
        api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), engine="ray", observer=watcher)
        assert weights(tmp_path / "out") == quiet
        assert watcher.bytes == watcher.total
        assert ray.is_initialized(), "a cluster that was joined is left running"
    finally:
        ray.shutdown()
        cluster.shutdown()


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


def test_workers_that_cannot_be_placed_end_with_a_diagnosis(models, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(sizing, "RAY_WORKER_MEMORY", 1 << 50)
    real = api.plan_workers

    def greedy(*arguments, **options):
        from dataclasses import replace

        return replace(real(*arguments, **options), projected=1 << 45)

    monkeypatch.setattr(crew, "plan_workers", greedy)
    with pytest.raises(EngineError, match=r"(?s)no worker could be started.*1 CPU and 32 TiB of memory.*--memory") as raised:
        api.merge(recipe(*models, tmp_path / "out"), engine="ray", workers=1)
    assert raised.value.exit_code == 75


def test_an_address_where_no_cluster_is_ends_with_75(models, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1") as raised:
        api.merge(recipe(*models, tmp_path / "out"), engine="ray")
    assert raised.value.exit_code == 75


def test_an_embedded_ray_starts_beside_a_cluster_that_runs_on_the_same_machine(models, quiet, tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20})
    try:
        api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), engine="ray", workers=2)
        assert weights(tmp_path / "out") == quiet
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
