"""What cannot be told is no error: readers that go away, streams that were closed, disks that are full."""

import json
import os
import subprocess
import sys

import pytest

from tests.raw_checkpoints import folder, one_tensor

COMMAND = f"{sys.executable} -m paramdelta_dist"


@pytest.fixture
def here(tmp_path):
    for name in ("new", "post", "old"):
        folder(tmp_path / name, {"model.safetensors": one_tensor("a.weight")})
    (tmp_path / "recipe.yaml").write_text("base: new\ndeltas:\n  - post: post\n    base: old\noutput: out\n")
    return tmp_path


def script(line, cwd):
    """A line of bash, in which PDD is the command; its exit code is that of the command, also in a pipeline."""
    line = f"set -o pipefail; {line.replace('PDD', COMMAND)}"
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "TERM": "dumb"}, check=False
    )


@pytest.mark.parametrize(
    "line",
    [
        "PDD merge recipe.yaml 2>&-",
        "PDD merge recipe.yaml >&- 2>&- <&-",
        "PDD merge recipe.yaml >/dev/full 2>/dev/full",
        "PDD merge recipe.yaml --json 2>&1 | true",
        "PDD merge recipe.yaml 2>&1 >/dev/null | head -c 1",
    ],
)
def test_a_merge_that_nobody_hears_ends_as_it_would_have(here, line):
    done = script(line, here)
    assert done.returncode == 0, done.stderr
    assert (here / "out/.paramdelta/commit.json").exists()
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_merge_that_nobody_hears_fails_as_it_would_have(here):
    done = script("PDD merge nothing.yaml 2>&- >/dev/full", here)
    assert (done.returncode, done.stderr) == (2, "")
    assert script("PDD merge nothing.yaml 2>&1 | true", here).returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(here):
    """Or what a library prints would go into a model."""
    program = "import os; from paramdelta_dist.cli import process; process.run(lambda: os.write(9, str(os.open('new', 0)).encode()))"
    done = script(f'{sys.executable} -c "{program}" <&- >&- 2>&- 9>number', here)
    assert done.returncode == 0
    assert int((here / "number").read_text()) > 2


def test_a_full_disk_is_an_error_where_what_is_told_is_all_there_is(here):
    done = script("PDD plan recipe.yaml --json >/dev/full", here)
    assert done.returncode == 75
    assert done.stderr == "error: standard output took only a part of this: No space left on device\n"
    assert script("PDD plan recipe.yaml --json | true", here).returncode == 0, "who reads has had enough"


def test_progress_and_results_still_come_where_somebody_listens(here):
    done = script("PDD merge recipe.yaml --json", here)
    assert json.loads(done.stdout)["state"] == "merged"
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert [event for event in events if event != "progress"] == ["started", "finished"]
