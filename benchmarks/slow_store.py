"""Reading from a slow store: whether enough is under way to use each connection, over the number of requests under way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.checkpoints import MODELS
from benchmarks.slow_server import BUCKET
from paramdelta_dist.planning.memory import REQUESTS_IN_FLIGHT
from tests.servers import free_ports

LATENCY, SPEED = 0.03, 90e6
"""Seconds before a reply and bytes a second of a connection, as S3 has them."""
STORES = {"six times slower": (6, 4), "as S3": (1, 12)}
"""How many times slower than S3 in both respects, and layers of the model. A store as fast as S3 needs more than two cores for itself
and its client when many requests are under way; a slower one shows the same curve with time stretched."""
BARE = (4, 16, 32)
"""Reads under way of the bare reader that ours is seen beside."""
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_EC2_METADATA_DISABLED": "true"}
ENVIRONMENT |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_REGION": "us-east-1"}


def measure() -> dict[str, Any]:
    work = harness.cache() / "slow-store"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        stores = [_curve(name, slower, layers, work) for name, (slower, layers) in STORES.items()]
    finally:
        shutil.rmtree(work)
    targets = []
    for store in stores:
        most = max((row for row in store["rows"] if row["who"] == "ours"), key=lambda row: row["most"])
        targets.append(harness.target(f"of connections × cap, {store['name']}, {most['most']:.0f} under way", most["ratio"], at_least=0.9))
    return {"what": {"latency": LATENCY, "speed": SPEED}, "stores": stores, "targets": targets}


def show(document: dict[str, Any]) -> None:
    for store in document["stores"]:
        print(f"  {store['name']}: {store['latency'] * 1000:.0f} ms before each reply, {store['speed'] / 1e6:.0f} MB/s a connection")
        rows = [
            (
                row["who"],
                int(row["most"]),
                row["mean"],
                row["rate"] / 1e6,
                row["ratio"],
                row["limit"],
                row["ratio"] / row["limit"],
                row["busy"],
            )
            for row in store["rows"]
        ]
        harness.table(("reads under way:", "most", "mean", "MB/s", "of most × cap", "limit", "of limit", "cores busy"), rows)
    print(
        f"  medians of {harness.ROUNDS}, from the first request for weights to the last byte, as the server saw them; limit: what the wait"
    )
    print("  before each reply leaves of a connection, given the size of the requests; cores busy: client and server, of those there are")


def _curve(name: str, slower: int, layers: int, work: Path) -> dict[str, Any]:
    latency, speed = LATENCY * slower, SPEED / slower
    with _server(latency, speed, layers) as endpoint:
        env = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        urls = [f"s3://{BUCKET}/{model}/model.safetensors" for model in MODELS]
        commands = {("ours", requests): _merge(*options, work) for requests, options in _settings(work, env).items()}
        commands |= {("bare", n): [sys.executable, "-m", "benchmarks.objects", "read", str(n), *urls] for n in BARE}

        def reading(command: list[str]) -> harness.Figures:
            shutil.rmtree(work / "out", ignore_errors=True)
            harness.settle()
            _taken(endpoint)
            done = harness.run(command, env=env)
            return _figures(_taken(endpoint), done, latency, speed)

        runs = {f"{who} {number}": (lambda command=command: reading(command)) for (who, number), command in commands.items()}
        medians = harness.medians(harness.in_turn(runs))
    rows = [{"who": who, **medians[f"{who} {number}"]} for who, number in commands]
    return {"name": name, "latency": latency, "speed": speed, "rows": rows}


def _figures(taken: dict[str, float], done: harness.Finished, latency: float, speed: float) -> harness.Figures:
    seconds = taken["ended"] - taken["began"]
    transfer = taken["size"] / taken["requests"] / speed
    rate = taken["size"] / seconds
    return {
        "rate": rate,
        "most": taken["most"],
        "mean": taken["request_seconds"] / seconds,
        "ratio": rate / (taken["most"] * speed),
        "limit": transfer / (latency + transfer),
        "busy": (taken["cpu"] + done.cpu) / done.wall / len(os.sched_getaffinity(0)),
        "wall": done.wall,
    }


def _settings(work: Path, env: dict[str, str]) -> dict[int, tuple[int, str]]:
    """Workers and memory by how many reads of full size they keep under way, as the plan says."""
    found: dict[int, tuple[int, str]] = {}
    for workers, mib in ((1, 4096), (1, 900), (1, 700)):
        command = [*_package("plan", work), "--workers", str(workers), "--memory", f"{mib}MiB"]
        try:
            memory = json.loads(harness.run(command, env=env).stdout)["memory"]
        except RuntimeError:  # too little
            continue
        reads = min(REQUESTS_IN_FLIGHT, memory["tiles_in_flight"] * len(MODELS)) * memory["workers"]
        found.setdefault(reads, (workers, f"{mib}MiB"))
    return dict(sorted(found.items()))


def _merge(workers: int, memory: str, work: Path) -> list[str]:
    return [*_package("merge", work), "--workers", str(workers), "--memory", memory]


def _package(verb: str, work: Path) -> list[str]:
    """A command with a recipe from the slow store to disk, in one shard: between shards a worker begins anew."""
    new, post, old = (f"s3://{BUCKET}/{model}" for model in MODELS)
    recipe = work / "recipe.yaml"
    document = {"base": new, "deltas": [{"post": post, "base": old}], "output": str(work / "out")}
    recipe.write_text(json.dumps(document))
    return [sys.executable, "-m", "paramdelta_dist", verb, str(recipe), "--json"]


@contextmanager
def _server(latency: float, speed: float, layers: int) -> Iterator[str]:
    [port] = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.slow_server", str(port), str(latency), str(speed), str(layers)]
    process = subprocess.Popen(command, cwd=harness.REPOSITORY)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                _taken(endpoint)
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _taken(endpoint: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{endpoint}/_taken", timeout=30) as reply:
        found: dict[str, float] = json.load(reply)
    return found
