"""A process that is told to stop: by which signal, how soon, with which code, and what it leaves."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from paramdelta_dist import api, stopping
from paramdelta_dist.errors import Interrupted, TransientStorageError
from paramdelta_dist.storage.retry import RetryPolicy
from tests.faults import fault_proxy, refused, stalled
from tests.models import save_model

COMMAND = [sys.executable, "-m", "paramdelta_dist"]
AWAY_SECONDS = 2.0
"""How long a stop may take while a store is away,"""
BUSY_SECONDS = 4.0
"""and what a busy machine may add."""
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models of 48 MB in eight tensors."""
    root = tmp_path_factory.mktemp("models")
    for scale, name in enumerate(("new", "post", "old")):
        save_model(root / name, {f"layers.{n}.weight": torch.full((1500, 2000), 1.0 + scale) for n in range(4)})
    return root


def recipe_file(folder, *, source, output):
    path = folder / "recipe.yaml"
    path.write_text(f"base: {source}/new\ndeltas:\n  - post: {source}/post\n    base: {source}/old\noutput: {output}\nshard_size: 1GB\n")
    return path


def start(*arguments, shell=None, **environment):
    """The command in a process of its own; with `shell`, what a script does with "$@"."""
    line = [*COMMAND, *map(os.fspath, arguments)]
    return subprocess.Popen(
        ["sh", "-c", shell, "sh", *line] if shell else line,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    until = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def stop(process, number=signal.SIGINT, *, pid=None):
    """Send a signal; returns the seconds until the end, and what was said."""
    began = time.monotonic()
    os.kill(pid or process.pid, number)
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert process.returncode == 130, (process.returncode, err)
    assert "Traceback" not in err
    return seconds, out, err


@contextmanager
def black_hole():
    """The URL of a server that accepts connections and never says a word, and the list of those connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        connections = []

        def accept():
            while True:
                try:
                    connections.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                connection.close()


def as_user_of(url):
    return {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def inputs(s3_server, models):
    """A bucket with the models."""
    name = s3_server.make_bucket()
    for file in sorted(models.rglob("*.*")):
        s3_server.client().put_object(Bucket=name, Key=str(file.relative_to(models)), Body=file.read_bytes())
    return name


@pytest.fixture
def bucket(s3_server):
    """An empty bucket, and a proxy before the server."""
    name = s3_server.make_bucket()
    with fault_proxy(s3_server.endpoint) as proxy:
        yield name, proxy, {**s3_server.environ, "AWS_ENDPOINT_URL": proxy.endpoint}


@pytest.mark.parametrize(
    ("number", "shell"),
    [(signal.SIGHUP, None), *((number, '"$@" & echo $! >pid; wait $!') for number in (signal.SIGTERM, signal.SIGINT))],
    ids=["HUP", "TERM in the background", "INT in the background"],
)
def test_each_signal_stops_a_merge_that_goes_on_later(tmp_path, models, bucket, monkeypatch, number, shell):
    """Also where SIGINT is ignored from the beginning, as in every `command &` of a script."""
    name, proxy, environment = bucket
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file(tmp_path, source=models, output=f"s3://{name}/out")
    proxy.rule(stalled(), method="PUT", times=math.inf)
    process = start("merge", recipe, shell=shell, **environment)
    wait_for(lambda: proxy.faults, process)
    pid = int((tmp_path / "pid").read_text()) if shell else process.pid
    seconds, _, err = stop(process, number, pid=pid)
    assert seconds < AWAY_SECONDS + stopping.HOPE_SECONDS + BUSY_SECONDS
    assert "error: stopped. What is finished is kept; the same command goes on from there" in err
    if number == signal.SIGHUP:
        proxy.clear()
        done = start("merge", recipe, "--json", **environment)
        assert json.loads(done.communicate(timeout=60)[0])["state"] == "merged"


@pytest.mark.slow
def test_a_hangup_is_ignored_where_nohup_asks_for_it(tmp_path, models, bucket):
    name, proxy, environment = bucket
    proxy.rule(stalled(), method="PUT")
    process = start("merge", recipe_file(tmp_path, source=models, output=f"s3://{name}/out"), shell='exec nohup "$@"', **environment)
    wait_for(lambda: proxy.faults, process)
    process.send_signal(signal.SIGHUP)
    time.sleep(stopping.HOPE_SECONDS + 0.5)
    assert process.poll() is None
    stop(process, signal.SIGTERM)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["plan", "RECIPE"], marks=pytest.mark.slow),
        ["check", "RECIPE", "--json"],
        pytest.param(["status", "s3://bucket/out"], marks=pytest.mark.slow),
        pytest.param(["verify", "s3://bucket/out", "--deep"], marks=pytest.mark.slow),
        ["merge", "s3://bucket/recipe.yaml"],
        ["jobs", "--address", "URL"],
    ],
    ids=" ".join,
)
def test_a_store_that_never_answers_does_not_hold_a_stop_up(tmp_path, arguments):
    recipe = recipe_file(tmp_path, source="s3://bucket", output="s3://bucket/out")
    with black_hole() as (url, connections):
        line = [{"RECIPE": os.fspath(recipe), "URL": url}.get(each, each) for each in arguments]
        process = start(*line, **as_user_of(url))
        wait_for(lambda: connections, process)
        time.sleep(0.2)
        seconds, out, err = stop(process, SIGNALS[len(arguments) % 3])
    assert seconds < AWAY_SECONDS + BUSY_SECONDS
    assert "error: stopped" in err
    if "--json" in arguments:
        assert json.loads(out)["error"]["exit_code"] == 130


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_a_store_that_refuses_connections_does_not_hold_a_stop_up(tmp_path, engine):
    recipe = recipe_file(tmp_path, source="s3://bucket", output="s3://bucket/out")
    recipe.write_text(recipe.read_text() + f'storage: {{"s3://bucket/": {{engine: {engine}}}}}\n')
    process = start("plan", recipe, **as_user_of("http://127.0.0.1:9"))
    for line in process.stderr:
        if "next attempt" in line:
            break
    seconds, _, err = stop(process)
    assert seconds < AWAY_SECONDS + BUSY_SECONDS
    assert "error: stopped" in err


@pytest.mark.parametrize("what", ["reads stall", "uploads stall", pytest.param("everything is refused", marks=pytest.mark.slow)])
def test_a_store_that_goes_away_during_a_merge_does_not_hold_a_stop_up(tmp_path, inputs, bucket, what):
    name, proxy, environment = bucket
    process = start("merge", recipe_file(tmp_path, source=f"s3://{inputs}", output=f"s3://{name}/out"), **environment)
    if what == "reads stall":
        proxy.rule(stalled(), method="GET", path=r"model", skip=10, times=math.inf)
    elif what == "uploads stall":
        proxy.rule(stalled(), method="PUT", times=math.inf)
    else:
        proxy.rule(refused(503, "SlowDown"), method="GET", path=r"model", skip=10, times=math.inf)
    wait_for(lambda: proxy.faults, process)
    time.sleep(1)
    seconds, _, _ = stop(process)
    assert seconds < AWAY_SECONDS + BUSY_SECONDS


def test_a_stop_takes_back_what_is_being_uploaded_where_the_store_answers(tmp_path, s3_server, inputs, bucket):
    name, proxy, environment = bucket
    process = start("merge", recipe_file(tmp_path, source=f"s3://{inputs}", output=f"s3://{name}/out"), **environment)
    wait_for(lambda: proxy.count("PUT", "partNumber=1&"), process)
    stop(process, signal.SIGTERM)
    assert s3_server.open_uploads(name) == []


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6])
def test_a_stop_while_the_program_starts_is_a_stop_without_a_traceback(tmp_path, models, delay):
    with black_hole() as (url, _):
        process = start("plan", recipe_file(tmp_path, source="s3://bucket", output="s3://bucket/out"), **as_user_of(url))
        ours = f"/proc/{process.pid}/status"
        wait_for(lambda: int(_field(ours, "SigCgt"), 16) & 1 << signal.SIGHUP - 1, process)  # Python itself handles INT alone
        time.sleep(delay)
        _, _, err = stop(process)
    assert "error: stopped" in err


def _field(path, name):
    with open(path) as lines:
        return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    """Here the first is given a minute to be answered."""
    numbers = "stopping.GRACE_SECONDS = stopping.HOPE_SECONDS = stopping.LONGEST_SECONDS = 60.0"
    program = f"from paramdelta_dist import stopping; {numbers}; from paramdelta_dist.__main__ import main; main()"
    recipe = recipe_file(tmp_path, source="s3://bucket", output="s3://bucket/out")
    with black_hole() as (url, connections):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "plan", recipe],
            env={**os.environ, **as_user_of(url)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: connections, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None, "its planning waits for requests that nobody answers"
        seconds, _, err = stop(process, signal.SIGTERM)
    assert seconds < 30
    assert err.count("error: stopped") == 1


def test_a_program_that_uses_the_package_is_interrupted_while_a_store_is_away():
    """Without our process around it: in a notebook, where Ctrl-C is a KeyboardInterrupt and the next cell may work again."""
    program = (
        "import time, paramdelta_dist as pdd\nprint('begun', flush=True)\n"
        "try: pdd.inspect('s3://bucket/model')\nexcept KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    with black_hole() as (url, connections):
        environment = {**os.environ, **as_user_of(url)}
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        wait_for(lambda: connections, process)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline(), process.stdout.readline()] == ["begun\n", "interrupted\n"]
        assert time.monotonic() - began < AWAY_SECONDS + BUSY_SECONDS
        process.kill()
        process.communicate()


def test_a_stop_ends_the_waits_that_have_begun_and_no_later_ones():
    policy = RetryPolicy(first_delay=60.0, longest_delay=60.0, jitter=lambda longest: longest)
    tried = threading.Event()

    def fails():
        tried.set()
        raise TransientStorageError("away")

    raised = []

    def persist():
        with pytest.raises(Interrupted):
            policy.persisting(fails, what="it")
        raised.append(True)

    for _ in range(2):
        tried.clear()
        thread = threading.Thread(target=persist)
        thread.start()
        assert tried.wait(10)
        time.sleep(0.1)
        assert thread.is_alive(), "a stop of earlier times"
        stopping.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert raised == [True, True]


def test_a_merge_from_python_leaves_signals_as_they_are(tmp_path, models):
    before = [signal.getsignal(number) for number in SIGNALS]
    from tests.models import recipe

    api.merge(recipe(models / "new", models / "post", models / "old", tmp_path / "out"))
    assert [signal.getsignal(number) for number in SIGNALS] == before
