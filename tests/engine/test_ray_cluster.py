"""The driver on clusters that change: nodes come, are about to go, and are lost; none has room; versions differ."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import ray
import torch
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

import paramdelta_dist
from paramdelta_dist import api
from paramdelta_dist.engine.metrics import METRICS
from paramdelta_dist.engine.ray.cluster import Node, Share, explain, join
from paramdelta_dist.engine.ray.executor import RayExecutor
from paramdelta_dist.engine.schedule import TIMES, Times
from paramdelta_dist.errors import EngineError, UsageError
from tests.acting_units import Nap, nap, wait
from tests.models import recipe, save_model
from tests.stop_after_first import Watcher, weights

GB = 1 << 30


@pytest.fixture(scope="module")
def cluster(ray_head):
    """A cluster whose head, where the driver is, runs no workers."""
    ray.init(address=ray_head.address, log_to_driver=False, logging_level="ERROR")
    yield ray_head
    ray.shutdown()


@contextmanager
def nodes(cluster, count, **options):
    """`count` nodes of one core, for a while."""
    added = [cluster.add_node(**{"num_cpus": 1, "object_store_memory": 80 << 20, **options}) for _ in range(count)]
    try:
        yield added
    finally:
        for node in added:
            if node in cluster.worker_nodes:
                cluster.remove_node(node, allow_graceful=False)
        gone = {node.node_id for node in added}
        wait(lambda: not any(node["Alive"] and node["NodeID"] in gone for node in ray.nodes()))


def drain(cluster, node, seconds):
    """Announce that a node goes in so many seconds, as a cloud does that takes a spot machine back."""
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.gcs_address).drain_node(node.node_id, reason, "spot", int((time.time() + seconds) * 1000))
    assert accepted, why


def naps(count, seconds=0.1, enough=""):
    return [Nap(f"{number:03}", seconds, enough=str(enough)) for number in range(count)]


MANY = 300
"""Naps for a run that goes on until what it waits for has happened, however slow the machine is."""


class Run:
    """A run over naps in which something happens after some results, made on some nodes: (file, node) in order, and the executor."""

    def __init__(self, units, *, after=1, on=1, act=lambda made: None, until=lambda made: True, workers=None, patience=60.0, times=TIMES):
        """`act` is called after so many results on so many nodes; when then `until` is true, units that can be cut short are."""
        self.executor, self.made, self.bytes, acted = RayExecutor(workers, memory=1 << 20, patience=patience, times=times), [], 0, False
        with closing(self.executor.run(nap, None, units, advance=self.advance)) as results:
            for result in results:
                self.made.append(result)
                if not acted and len(self.made) >= after and len({node for _, node in self.made}) >= on:
                    acted = True
                    act(self.made)
                if acted and units[0].enough and until(self.made):
                    Path(units[0].enough).touch()
        assert acted
        assert sorted(file for file, _ in self.made) == sorted(unit.file for unit in units)
        assert self.bytes == sum(unit.size for unit in units)

    def advance(self, size):
        self.bytes += size


def test_without_room_for_a_worker_it_ends_with_75_and_says_what_there_is_and_asks_for_no_more_than_it_can_use(cluster):
    asked = []

    def look():
        wait(lambda: asked.append(waiting()) or asked[-1])

    watching = threading.Thread(target=look)
    watching.start()
    with pytest.raises(EngineError) as raised:
        Run(naps(3), patience=5.0)
    watching.join()
    assert raised.value.exit_code == 75
    told = str(raised.value)
    assert "no worker could be started in 5.0 s. A worker needs 1 CPU and 1 MiB of memory; the cluster has:\n" in told
    assert "GiB of memory; free: " in told
    assert "Waiting for resources there: 3 × (1 CPU and 1 MiB of memory)" in told
    assert "No node has CPUs for workers" in told
    assert "Then run again: what is done is kept" in told
    assert max(asked) == 3, "one worker a unit, although no limit was given"
    wait(lambda: waiting() == 0)


def waiting():
    """Workers that the autoscaler is told to make room for."""
    demand = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands.ray_task_actor_demand
    return sum(each.count for one in demand for each in one.bundles_by_count)


def test_a_merge_on_a_cluster_is_counted_where_prometheus_looks(cluster, tmp_path):
    tensors = {f"{n}.weight": torch.randn(500, 300) for n in range(4)}
    new, post, old = (
        save_model(tmp_path / name, {n: t * s for n, t in tensors.items()}) for name, s in (("n", 1.0), ("p", 1.1), ("o", 0.9))
    )
    with nodes(cluster, 1):
        wait(is_scraped)  # the agent of a new node begins to serve some seconds after it with Ray 2.43
        before = scrape()
        report = api.merge(recipe(new, post, old, tmp_path / "out", shard_size="1MB"), engine="ray").report
        assert report["nodes"] == 1
        assert report["workers_lost"] == 0
        found = {}

        def scraped():
            found.clear()
            found.update(scrape() - before)
            return found.get(("paramdelta_shards", "made")) == report["shards"]["made"] and ("paramdelta_written_bytes", "") in found

        wait(scraped)
    assert found["paramdelta_read_bytes", ""] == report["bytes_read"]
    assert found["paramdelta_written_bytes", ""] == report["bytes_written"]
    stages = {value: seconds for (name, value), seconds in found.items() if name == "paramdelta_stage_seconds"}
    assert set(stages) == {"read", "compute", "write"}
    assert all(0 < seconds < report["seconds"] * 2 for seconds in stages.values())
    allowed = {(metric.name, value) for metric in METRICS for value in metric.values}
    assert set(found) <= allowed, "labels have a bounded set of values"


@pytest.mark.slow
def test_a_merge_that_loses_a_node_makes_its_shards_elsewhere_and_leaves_the_cluster_running(cluster, tmp_path):
    tensors = {f"{n}.weight": torch.randn(1000, 300) for n in range(24)}
    models = [save_model(tmp_path / name, {n: t * s for n, t in tensors.items()}) for name, s in (("n", 1.0), ("p", 1.1), ("o", 0.9))]
    api.merge(recipe(*models, tmp_path / "quiet", shard_size="1MB"), workers=1)
    with nodes(cluster, 2) as (first, _):
        watcher = Watcher(lambda receipt: cluster.remove_node(first, allow_graceful=False))
        report = api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), engine="ray", observer=watcher).report
    assert weights(tmp_path / "out") == weights(tmp_path / "quiet")
    assert report["shards"] == {"made": 24, "kept": 0}
    assert watcher.bytes == watcher.total
    assert ray.is_initialized(), "a cluster that was joined is left running"


def is_scraped():
    try:
        scrape()
    except urllib.error.URLError:
        return False
    return True


def scrape():
    """Our metrics as the nodes of the cluster serve them: totals by name and value of the label."""
    labels = {metric.name: metric.label for metric in METRICS}
    found = Counter()
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as reply:
                lines = reply.read().decode().splitlines()
            for line in lines:
                name, _, rest = line.partition("{")
                if name.startswith("ray_paramdelta_") and name.endswith("_total"):  # Ray 2.43 serves each by an old name too
                    name = name.removeprefix("ray_").removesuffix("_total")
                    pairs = dict(pair.split("=", 1) for pair in rest.rpartition("}")[0].split(",") if "=" in pair)
                    found[name, pairs.get(labels[name], '""').strip('"')] += float(rest.rpartition(" ")[2])
    return found


@pytest.mark.slow
def test_workers_are_spread_over_nodes_and_a_node_that_joins_is_used(cluster, tmp_path):
    joined = []

    def grow(made):
        joined.append(cluster.add_node(num_cpus=2, object_store_memory=80 << 20))

    with nodes(cluster, 2, num_cpus=2) as added:
        run = Run(naps(MANY, 0.2, tmp_path / "both"), on=2, workers=2)
        assert run.executor.stats.nodes == 2, "although one has room for both workers"
        try:
            run = Run(naps(MANY, 0.2, tmp_path / "all"), on=2, act=grow, until=lambda made: len({node for _, node in made}) == 3)
        finally:
            for node in joined:
                cluster.remove_node(node, allow_graceful=False)
    used = Counter(node for _, node in run.made)
    assert set(used) == {node.node_id for node in added + joined}
    assert run.executor.stats.nodes == 3
    assert 3 <= run.executor.stats.workers <= 6
    assert run.executor.stats.lost == run.executor.stats.retries == 0


@pytest.mark.slow
def test_a_node_that_is_about_to_go_finishes_what_it_has_and_is_given_nothing_new(cluster, tmp_path):
    with nodes(cluster, 2) as (first, second):
        announced = []

        def announce(made):
            drain(cluster, first, 100)
            announced.append(len(made))

        units = naps(MANY, 0.2, tmp_path / "enough")
        run = Run(units, on=2, act=announce, until=lambda made: len(made) > announced[0] + 25, times=Times(look=0.2))
        assert {node for _, node in run.made[-10:]} == {second.node_id}
        assert first.node_id in {node for _, node in run.made}
        assert run.executor.stats.retries == run.executor.stats.lost == 0
        assert "leaving" not in run.executor.stats.causes, "nothing was made in vain"


@pytest.mark.slow
def test_what_a_node_cannot_finish_before_it_goes_is_made_elsewhere_and_logs_say_what_and_where(cluster, caplog):
    with nodes(cluster, 2) as (first, second):

        def announce(made):
            drain(cluster, first if made[-1][1] == second.node_id else second, 5)  # the one that is at the long one

        run = Run([Nap("long", 4.0, says="odd"), *naps(3)], after=3, act=announce, times=Times(look=0.2, leave=2.0))
        assert run.executor.stats.causes == {"leaving": 1}
        assert run.executor.stats.lost == 0
        assert dict(run.made)["long"] == run.made[2][1]
    told = [record.getMessage() for record in caplog.records]
    address = first.node_ip_address
    assert f"long (attempt 1 on {address}): odd" in told, "what a worker warns of reaches the driver"
    assert any(line.startswith(f"long (attempt 1 on {address}): its node goes in ") for line in told)
    assert f"node {address} is about to go; its worker is given nothing more" in told


@pytest.mark.slow
def test_losing_all_nodes_but_one_costs_what_they_were_at(cluster):
    with nodes(cluster, 3) as added:

        def strike(made):
            for node in added[:2]:
                cluster.remove_node(node, allow_graceful=False)

        run = Run(naps(45, 0.2), on=3, act=strike)
        assert {node for _, node in run.made[-10:]} == {added[2].node_id}
        assert run.executor.stats.lost == 2
        assert set(run.executor.stats.causes) <= {"node_lost", "late"}, "a lost one may be late before it is missed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ("9.9", "on node {ip} is 9.9, this driver's is {ours}"),
        (None, "on a node of the cluster, the Python that Ray runs with has no paramdelta-dist"),
    ],
)
def test_workers_of_another_version_are_refused_with_the_remedy(installed, says, cluster, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(Path(paramdelta_dist.__file__).parent, site / "paramdelta_dist", ignore=shutil.ignore_patterns("__pycache__"))
    if installed:
        (site / "paramdelta_dist/_version.py").write_text(f'"""Another."""\n\n__version__ = "{installed}"\n')
    else:
        (site / "paramdelta_dist/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'paramdelta_dist'\")\n")
    models = [str(save_model(tmp_path / name, {"w": torch.ones(10, 10)})) for name in ("new", "post", "old")]
    merge = ["merge", "--base", models[0], "--delta", f"{models[1]}:{models[2]}", "--output", str(tmp_path / "out")]
    source = str(Path(paramdelta_dist.__file__).parent.parent)
    with nodes(cluster, 1, env_vars={"PYTHONPATH": str(site)}) as [node]:
        done = subprocess.run(
            [sys.executable, "-m", "paramdelta_dist", *merge, "--engine", "ray", "--json"],
            env={**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": source},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)["error"]["message"]
    assert says.format(ip=node.node_ip_address, ours=paramdelta_dist.__version__) in told
    assert "submit --ship package" in told
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("share", "nodes", "says"),
    [
        (Share(2 * GB), [], "No node has CPUs for workers"),
        (Share(2 * GB), [Node("a", {"memory": 8 * GB}, {})], "No node has CPUs for workers"),
        (Share(2 * GB), [Node("a", {"CPU": 4, "memory": 8 * GB}, {}, leaving=True)], "All its nodes are about to go"),
        (
            Share(9 * GB),
            [Node("a", {"CPU": 4, "memory": 8 * GB}, {})],
            "the most on one is 8 GiB of memory: ask for less (--memory), or add",
        ),
        (
            Share(2 * GB, 1),
            [Node("a", {"CPU": 4, "memory": 8 * GB}, {})],
            "the most on one is 0 GPUs: compute on CPUs (--device cpu), or add",
        ),
        (Share(2 * GB), [Node("a", {"CPU": 4, "memory": 8 * GB}, {"CPU": 0, "memory": 8 * GB})], "in use by others"),
    ],
)
def test_a_diagnosis_names_what_is_scarce_and_what_can_be_done(share, nodes, says):
    told = explain(share, nodes, [])
    assert says in told
    assert all(node.address in told for node in nodes)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_is_not_the_clusters_own_is_refused_with_the_right_one(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=r"`submit` takes a dashboard's.*HOST:6379"):
        join(None)
