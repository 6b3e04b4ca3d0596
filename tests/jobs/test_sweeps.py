"""A sweep as a job on a real Ray cluster: made once, found done, and gone on with where it was stopped."""

import io
import json
import math
import threading
import time

import pyarrow.parquet as pq
import pytest

from tests.jobs.test_on_a_cluster import job_of, wait_for

pytestmark = pytest.mark.slow

POINTS = ("weight=0.5", "weight=1.0", "weight=2.0")


def swept(site, name):
    path = site.recipe(name)
    path.write_text(path.read_text() + "sweep: {weight: [0.5, 1.0, 2.0]}\n")
    return path


def shards(site, name):
    return sorted(key for key in site.objects(name) if "/model-" in key and "/.paramdelta/" not in key)


def test_a_sweep_is_made_as_a_job_with_its_report_and_found_done(site):
    recipe = swept(site, "once")
    first = site.run("submit", recipe, "--report")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"merged into s3://{site.bucket}/once\n")
    assert all(point in first.stdout for point in POINTS)
    assert f"report: s3://{site.bucket}/once/report/report.html" in first.stdout
    there = site.objects("once")
    assert {"sweep.json", "report/report.html", *(f"{point}/.paramdelta/commit.json" for point in POINTS)} <= there
    assert len(shards(site, "once")) == 3 * 8
    again = site.run("submit", recipe, "--report", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["state"] == "nothing to do"
    assert json.loads(again.stdout)["job"] is None
    unchecked = site.run("submit", recipe, "--no-check")  # the cluster finds it done, too
    assert unchecked.returncode == 0, unchecked.stderr
    assert "nothing to do" in unchecked.stdout
    assert "3 points of this sweep" in unchecked.stdout


def test_a_sweep_that_was_stopped_goes_on_where_it_was(site):
    recipe, go = swept(site, "halved"), threading.Event()

    def held(exchange):
        go.wait(120)
        exchange.answer(exchange.forward())

    site.proxy.rule(held, method="PUT", path="/halved/.*/model-0000[3-8]-", times=math.inf)
    first = site.start("submit", recipe, "--report")
    wait_for(lambda: len(shards(site, "halved")) == 2 * 3, "the first shards of all points to be published")
    [job] = [job for job in site.document("jobs")["jobs"] if job["output"].endswith("/halved")]
    assert "is told to stop" in site.run("stop", job["job"]).stdout
    time.sleep(3)  # so that the driver is told
    go.set()
    assert site.run("stop", job["job"], "--wait").returncode == 0
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "was stopped; submit again" in err
    assert not any(key.endswith("commit.json") for key in site.objects("halved"))

    site.proxy.clear()
    second = site.run("submit", recipe, "--report")
    assert second.returncode == 0, second.stderr
    assert "kept from an earlier run" in second.stdout
    assert job_of(second.stderr) == job["job"].removesuffix("-1") + "-2"
    assert len(shards(site, "halved")) == 3 * 8
    kept = site.server.client().get_object(Bucket=site.bucket, Key="halved/report/tensors.parquet")["Body"].read()
    rows = pq.read_table(io.BytesIO(kept)).to_pylist()
    assert {(row["point"], row["tensor"]) for row in rows} == {(point, f"layers.{n}.weight") for point in POINTS for n in range(8)}
