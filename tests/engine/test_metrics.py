"""What is counted: names that Prometheus takes, bounded labels, the totals of reports, and a dashboard that asks for nothing else."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.engine.metrics import METER, METRICS, READ_BYTES, RETRIES, STAGE_SECONDS, WRITTEN_BYTES, Meter
from paramdelta_dist.engine.worker_log import KEPT, WorkerLog
from tests.models import recipe, save_model

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/paramdelta-dist.json"
ADDED_BY_RAY = {"SessionName", "NodeAddress", "WorkerId"}


def test_names_and_labels_are_what_prometheus_takes_and_few():
    for metric in METRICS:
        assert re.fullmatch(r"paramdelta_[a-z_]+", metric.name)
        assert not metric.name.endswith("_total"), "Ray adds that"
        assert bool(metric.label) == (metric.values != ("",))
        assert len(metric.values) <= 8


def test_a_label_has_the_values_that_are_listed_and_no_others():
    with pytest.raises(KeyError):
        Meter().add(RETRIES, value="model-00001-of-00002.safetensors")


def test_a_merge_counts_what_its_report_says(tmp_path):
    tensors = {f"{n}.weight": torch.randn(700, 300) for n in range(4)}
    models = [
        save_model(tmp_path / name, {n: t * s for n, t in tensors.items()}) for name, s in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    ]
    before = METER.totals()
    report = api.merge(recipe(*models, tmp_path / "out", shard_size="1MB"), workers=2).report
    counted = {key: total - before[key] for key, total in METER.totals().items()}
    assert counted[READ_BYTES, ""] == report["bytes_read"]
    assert counted[WRITTEN_BYTES, ""] == report["bytes_written"]
    assert all(0 < counted[STAGE_SECONDS, stage] < 8 * report["seconds"] for stage in STAGE_SECONDS.values)


def test_the_dashboard_asks_only_for_what_is_there():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    metrics = {f"ray_{metric.name}_total": metric for metric in METRICS}
    asked = set()
    for query in queries:
        named = set(re.findall(r"ray_\w+", query))
        asked |= named
        assert named, query
        assert named <= set(metrics), query
        labels = (
            set(re.findall(r"by \((\w+)\)", query))
            | set(re.findall(r"[{,](\w+)=", query))
            | set(re.findall(r"label_values\(\w+, (\w+)\)", query))
        )
        assert labels <= ADDED_BY_RAY | {metrics[name].label for name in named}, query
        for label, value in re.findall(r'(\w+)="(\w+)"', query):
            assert all(value in metrics[name].values for name in named if metrics[name].label == label), query
    assert asked == set(metrics), "everything that is counted is shown"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_line_of_a_workers_log_names_shard_attempt_and_node_and_its_warnings_reach_the_driver(capsys):
    log, ours = WorkerLog("10.0.0.7"), logging.getLogger("paramdelta_dist.storage.retry")
    level = logging.getLogger("paramdelta_dist").level
    log.install()
    try:
        log.doing("model-00002.safetensors", 3)
        ours.info("all is well")
        ours.warning("%s failed", "s3://b/k")
        logging.getLogger("botocore").warning("not ours")
        log.doing()
        for number in range(KEPT + 5):
            ours.warning("late %d", number)
    finally:
        logging.getLogger().removeHandler(log)
        logging.getLogger("paramdelta_dist").setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines[:3]] == [
        "INFO model-00002.safetensors (attempt 3 on 10.0.0.7): all is well",
        "WARNING model-00002.safetensors (attempt 3 on 10.0.0.7): s3://b/k failed",
        "WARNING model-00002.safetensors (attempt 3 on 10.0.0.7): not ours",
    ]
    kept = log.warnings()
    assert len(kept) == KEPT, "a storm of warnings does not reach the driver"
    assert kept[-1] == f"idle on 10.0.0.7: late {KEPT + 4}"
    assert log.warnings() == []
