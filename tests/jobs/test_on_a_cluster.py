"""Merges submitted to a real Ray cluster through its dashboard, from and to S3, as a user does it."""

import json
import re
import shutil
import signal
import time

import pytest

from tests.clusters import ROOT, relay


def wait_for(condition, what, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)


def job_of(text):
    return re.search(r"pdd-[0-9a-f]{12}-\d+", text)[0]


def finished(text):
    return re.findall(r'"finished".*"file": "([^"]*)"', text)


def test_a_recipe_is_merged_while_the_connection_breaks_and_no_line_comes_twice_or_is_lost(site):
    recipe, go = site.recipe("good"), site.hold("good")
    with relay(site.cluster.dashboard) as way:
        process = site.start("submit", recipe, address=way.url)
        wait_for(lambda: "good/model-00002" in str(site.proxy.requests), "the first shards")
        wait_for(lambda: len(site.objects("good")) >= 4, "the first shards to be published")
        time.sleep(2)  # so that the log has told of them
        way.cut()
        time.sleep(1)
        way.refusing = True
        way.cut()
        time.sleep(2)
        way.refusing = False
        go.set()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith(f"merged into s3://{site.bucket}/good\n")
    assert {"config.json", ".paramdelta/commit.json", "model-00008-of-00008.safetensors"} <= site.objects("good")
    assert "trying again" in err
    log = site.run("logs", job_of(err)).stdout
    told = [line for line in err.splitlines() if not re.match(r"job pdd-|the cluster at |connected again", line)]
    assert told == log.partition("\n{\n")[0].splitlines()
    assert sorted(finished(err)) == [f"model-0000{n}-of-00008.safetensors" for n in range(1, 9)]
    assert len(set(re.findall(r'"worker": "([^"]*)"', err))) == 2, "both nodes worked"

    again = site.run("submit", recipe, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["state"] == "nothing to do"
    status = site.document("status", job_of(err))
    assert (status["state"], status["exit_code"], status["result"]["shards"]) == ("succeeded", 0, {"made": 8, "kept": 0})


def test_a_stopped_job_is_no_success_and_its_next_attempt_goes_on(site):
    recipe, go = site.recipe("stopped"), site.hold("stopped")
    process = site.start("submit", recipe)
    wait_for(lambda: len(site.objects("stopped")) >= 4, "the first shards to be published")
    [job] = [job for job in site.document("jobs")["jobs"] if job["output"].endswith("/stopped")]
    assert job["state"] == "running"
    wait_for(lambda: site.document("status", job["job"])["shards"]["finished"] >= 1, "the log to tell of a shard")
    running = site.document("status", job["job"])
    assert running["bytes"]["total"] > 8_000_000
    assert running["shards"]["total"] == 8
    stopping = site.start("stop", job["job"], "--wait")
    time.sleep(2)
    go.set()
    out, err = stopping.communicate(timeout=90)
    assert (stopping.returncode, "is stopped" in out) == (0, True), out + err
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "was stopped; submit again" in err
    assert "config.json" not in site.objects("stopped")

    second = site.run("submit", recipe)
    assert second.returncode == 0, second.stderr
    assert job_of(second.stderr) == job["job"].removesuffix("-1") + "-2"
    assert "kept from an earlier run" in second.stdout


def test_what_cannot_be_merged_is_told_before_anything_is_submitted(site):
    done = site.run("submit", site.recipe("missing", base="nowhere"), address="http://127.0.0.1:1")
    assert done.returncode == 3
    assert "nowhere" in done.stderr
    bad = site.recipe("bad")
    bad.write_text(bad.read_text().replace("deltas", "delats"))
    assert site.run("submit", bad, address="http://127.0.0.1:1").returncode == 2


@pytest.mark.slow
def test_the_exit_code_is_the_drivers_own_where_nothing_was_checked_before(site):
    done = site.run("submit", site.recipe("missing", base="nowhere"), "--no-check", "--json")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["state"] == "failed"
    assert "nowhere" in document["error"]["driver"]["message"]


@pytest.mark.slow
def test_ctrl_c_detaches_and_submitting_again_joins_the_job(site):
    recipe, go = site.recipe("detached"), site.hold("detached")
    process = site.start("submit", recipe)
    wait_for(lambda: len(site.objects("detached")) >= 4, "the first shards to be published")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    job = job_of(err)
    assert f"paramdelta-dist logs {job} -f --address {site.cluster.dashboard}" in err
    assert f"paramdelta-dist stop {job} --address {site.cluster.dashboard}" in err
    assert "Traceback" not in err
    both = [site.start("submit", recipe), site.start("logs", job, "-f"), site.start("submit", recipe, "--no-wait")]
    out, _ = both.pop().communicate(timeout=60)
    assert out == f"{job}\n"
    go.set()
    for each in both:
        out, err = each.communicate(timeout=90)
        assert each.returncode == 0, err
        assert "merged into" in out
    assert [job["state"] for job in site.document("jobs")["jobs"] if job["output"].endswith("/detached")] == ["succeeded"]


@pytest.mark.slow
def test_a_dashboard_that_stays_away_ends_the_following_and_not_the_job(site):
    recipe, go = site.recipe("away"), site.hold("away")
    (site.folder / "impatient.py").write_text(
        "from paramdelta_dist.jobs import following\nfollowing.GIVE_UP_SECONDS = 3.0\nfrom paramdelta_dist import __main__\n"
    )
    with relay(site.cluster.dashboard) as way:
        process = site.start("submit", recipe, address=way.url, program=("impatient.py",))
        wait_for(lambda: len(site.objects("away")) >= 4, "the first shards to be published")
        way.refusing = True
        way.cut()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "was left as it is" in err
    go.set()
    done = site.run("submit", recipe)
    assert done.returncode == 0, done.stderr
    assert "runs already" in done.stderr or "nothing to do" in done.stdout


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A checkout of a version that the cluster does not have."""
    root = tmp_path_factory.mktemp("newer")
    shutil.copytree(f"{ROOT}/paramdelta_dist", root / "paramdelta_dist", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(f"{ROOT}/{name}", root)
    (root / "paramdelta_dist/_version.py").write_text('"""The version."""\n\n__version__ = "99.1.0"\n')
    return root


@pytest.mark.slow
def test_another_version_on_the_cluster_is_refused_with_the_remedy(site, newer):
    done = site.run("submit", site.recipe("refused"), PYTHONPATH=str(newer))
    assert done.returncode == 2, done.stderr
    assert "version 99.1.0 submitted this job" in done.stderr
    assert "--ship package" in done.stderr
    assert not site.objects("refused")


@pytest.mark.slow
@pytest.mark.parametrize("ship", ["package", "wheel"])
def test_the_package_travels_to_a_cluster_that_has_another_version(site, newer, ship):
    done = site.run("submit", site.recipe(f"ship-{ship}"), "--ship", ship, "--json", PYTHONPATH=str(newer))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["version"] == "99.1.0"


@pytest.mark.slow
def test_overwriting_goes_on_after_a_stop_and_does_not_start_anew(site):
    recipe = site.recipe("replaced")
    assert site.run("submit", recipe).returncode == 0
    go = site.hold("replaced")
    process = site.start("submit", recipe, "--overwrite")
    wait_for(lambda: "config.json" not in site.objects("replaced"), "the old output to go")
    wait_for(lambda: len(site.objects("replaced")) >= 4, "the first shards to be published")
    job = site.document("jobs")["jobs"][0]["job"]
    stopping = site.start("stop", job, "--wait")
    time.sleep(2)
    go.set()
    stopping.communicate(timeout=90)
    process.communicate(timeout=60)
    assert process.returncode == 130
    done = site.run("submit", recipe, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "has replaced the output's old content already" in done.stderr
    assert "kept from an earlier run" in done.stdout
