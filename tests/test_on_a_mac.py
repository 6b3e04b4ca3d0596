"""The command line where nothing is that only Linux has: see `mac/sitecustomize.py`. And what it says on Windows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paramdelta_dist import api
from tests.models import save_model

MAC = str(Path(__file__).with_name("mac"))
ROOT = str(Path(__file__).parent.parent)
WITHOUT_POSIX = """
import sys
import signal
for name in ("fcntl", "resource", "posix", "pwd", "termios"):
    sys.modules[name] = None
del signal.SIGHUP, signal.pthread_sigmask
sys.platform = "win32"
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models of eight tensors of a MB."""
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(500, 500, generator=generator) for n in range(8)}
    for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9)):
        save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2)
    return root


def recipe_file(folder, models, output, **more):
    path = folder / f"{output}.yaml"
    recipe = {
        "base": f"{models}/new",
        "deltas": [{"post": f"{models}/post", "base": f"{models}/old"}],
        "output": str(folder / output),
        "shard_size": "1MB",
    }
    path.write_text(json.dumps({**recipe, **more}))
    return path


def start(*arguments, before=(), **environment):
    return subprocess.Popen(
        [*before, sys.executable, "-m", "paramdelta_dist", *map(os.fspath, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([MAC, ROOT]), "TERM": "dumb", "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments):
    # By way of a small process: what the kernel gives as the peak of a process counts what it was before it became the program.
    process = start(*arguments, "--json", before=("sh", "-c", '"$@"; exit $?', "sh"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    return json.loads(out)


def weights(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.safetensors")}


def test_all_that_only_linux_has_is_taken_away_from_these_tests():
    program = "import os; from paramdelta_dist.engine import machine; print(hasattr(os, 'fdatasync'), os.path.exists('/proc'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(machine.sys.platform)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([MAC, ROOT])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False", "darwin"]


def test_a_merge_is_stopped_by_ctrl_c_goes_on_and_is_what_linux_makes_of_it(models, tmp_path):
    recipe = recipe_file(tmp_path, models, "out")
    process = start("merge", recipe, "--workers", "1", PACE="0.4")
    until = time.monotonic() + 90
    while len(list((tmp_path / "out/.paramdelta").glob("receipts/*.json"))) < 2:  # not those that are being written
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not list((tmp_path / "out").rglob("*.paramdelta-part"))

    document = run("merge", recipe)
    assert document["shards"]["kept"] >= 2
    assert 20 << 20 < document["peak_memory"] <= document["projected_memory"], "measured, and within what is promised"
    run("verify", tmp_path / "out", "--deep", "--recompute", "1.0")
    assert run("merge", recipe)["state"] == "nothing to do"
    api.merge(api.load_recipe(str(recipe_file(tmp_path, models, "here"))))
    assert weights(tmp_path / "out") == weights(tmp_path / "here")


def test_a_sweep_of_a_method_that_looks_at_whole_tensors(models, tmp_path):
    more = {"method": "ties", "parameters": {"density": 0.5}, "sweep": {"weight": [0.5, 1.0]}}
    run("merge", recipe_file(tmp_path, models, "out", **more))
    api.merge(api.load_recipe(str(recipe_file(tmp_path, models, "here", **more))))
    for point in ("weight=0.5", "weight=1.0"):
        assert weights(tmp_path / "here" / point)
        assert weights(tmp_path / "out" / point) == weights(tmp_path / "here" / point)


def test_a_folder_of_links_into_a_cache_is_read(models, tmp_path):
    """The way into it is opened step by step, with what is to be had there."""
    cache = tmp_path / "hub/models--o--new"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((models / "new").iterdir())):
        (cache / f"blobs/{number:040x}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    run("merge", recipe_file(tmp_path, models, "out", base=str(snapshot)))


def test_windows_is_told_of_wsl_in_a_sentence(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_POSIX)
    done = subprocess.run(
        [sys.executable, "-c", "from paramdelta_dist.__main__ import main; main()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "WSL" in done.stderr
