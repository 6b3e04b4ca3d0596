"""A merge from and to S3 (SeaweedFS on loopback), against a bare copy of the same bytes, and against download, mergekit, upload."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, harness, mergekit
from benchmarks.harness import Figures
from paramdelta_dist.planning.memory import REQUESTS_IN_FLIGHT
from tests.servers import S3Server, s3_server

LAYERS = 4
"""1 GB a model: the server shares the machine with its client."""
WEIGHTS = "model.safetensors"
START = "the start of ours"
IMPORTS = "import obstore, paramdelta_dist.api.merge, paramdelta_dist.shards.merge_shard, paramdelta_dist.kernels.sum_cpu"
"""What every merge of ours begins with, whatever its size."""
NOBODYS = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


def measure() -> dict[str, Any]:
    models = checkpoints.random_models(LAYERS)
    size = sum((model / WEIGHTS).stat().st_size for model in models)
    mergekit.environment()
    work = harness.cache() / "s3"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with s3_server() as server:
            bench = _Bench(server, server.make_bucket(), models, work)
            bench.fill()
            plan = bench.plan()
            requests = min(REQUESTS_IN_FLIGHT, plan["memory"]["tiles_in_flight"] * len(models)) * plan["memory"]["workers"]
            runs: dict[str, Callable[[], Figures]] = {
                "ours, obstore": lambda: bench.ours("obstore"),
                "ours, s3fs": lambda: bench.ours("fsspec"),
                "bare obstore copy": lambda: bench.copy(requests),
                START: lambda: harness.run([sys.executable, "-c", IMPORTS]).figures,
                "download, mergekit bfloat16, upload": lambda: bench.by_way_of_disk("bfloat16"),
                "download, mergekit float32, upload": lambda: bench.by_way_of_disk("float32"),
            }
            measured = harness.in_turn({name: bench.afresh(run) for name, run in runs.items()})
    finally:
        shutil.rmtree(work)
    medians = harness.medians(measured)
    for each in medians.values():
        each["cpu_per_gb"] = each["cpu"] / (size * 4 / 3 / 1e9)
    ours, bare = medians["ours, obstore"], medians["bare obstore copy"]
    routes = [name for name in medians if name.startswith("download")]
    return {
        "what": {"bytes_needed": size, "bytes_written": size // 3, "server": "SeaweedFS on loopback", "requests_in_flight": requests},
        "peers": mergekit.versions(),
        "plan_requests": plan["requests"],
        "medians": medians,
        "runs": measured,
        "targets": [
            *(harness.target(f"times as fast as {name}", medians[name]["wall"] / ours["wall"], at_least=5) for name in routes),
            harness.target("times the client CPU of a bare copy", ours["cpu"] / bare["cpu"], at_most=1.4),
            harness.target(
                "times the client CPU of a bare copy, without the start",
                (ours["cpu"] - medians[START]["cpu"]) / bare["cpu"],
                at_most=1.4,
            ),
            harness.target("bytes read ÷ bytes needed", ours["read_ratio"], at_most=1.0005),
        ],
    }


def show(document: dict[str, Any]) -> None:
    what = document["what"]
    rows = [
        (
            name,
            each["wall"],
            each["cpu"],
            each["cpu_per_gb"],
            each["peak"] / 1e6,
            each.get("read_ratio", ""),
            int(each.get("requests", 0)) or "",
        )
        for name, each in document["medians"].items()
    ]
    harness.table(("", "wall s", "client cpu s", "cpu s/GB", "peak MB", "read ÷ needed", "reads"), rows)
    moved = (what["bytes_needed"] + what["bytes_written"]) / 1e9
    print(f"  medians of {harness.ROUNDS} in turn, whole client processes; {moved:.2f} GB moved, the server on the same cores")
    print(f"  up to {what['requests_in_flight']} reads under way in ours and in the bare copy")


class _Bench:
    """One server, the inputs in its bucket, and the ways of making the output."""

    def __init__(self, server: S3Server, bucket: str, models: Sequence[Path], work: Path) -> None:
        self.server, self.models, self.work = server, models, work
        self.bucket = bucket
        self.url = f"s3://{bucket}"
        self.env = {**server.environ, **NOBODYS}

    def fill(self) -> None:
        for model in self.models:
            for name in (WEIGHTS, "config.json"):
                self._move("upload", 4, model / name, f"{self.url}/{model.name}/{name}")

    def afresh(self, run: Callable[[], Figures]) -> Callable[[], Figures]:
        """`run` with nothing left of the runs before it but the inputs."""

        def started() -> Figures:
            self._remove("out/")
            shutil.rmtree(self.work / "disk", ignore_errors=True)
            (self.work / "disk").mkdir()
            harness.settle()
            return run()

        return started

    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._package("plan", self._recipe("obstore")).stdout)
        return found

    def ours(self, engine: str) -> Figures:
        done = self._package("merge", self._recipe(engine))
        report = json.loads(done.stdout)
        needed = sum((model / WEIGHTS).stat().st_size for model in self.models)
        return {**done.figures, "read_ratio": report["bytes_read"] / needed, "requests": report["requests"]}

    def copy(self, requests: int) -> Figures:
        return self._move("copy", requests, f"{self.url}/out/{WEIGHTS}", *(f"{self.url}/{m.name}/{WEIGHTS}" for m in self.models)).figures

    def by_way_of_disk(self, dtype: str) -> Figures:
        """What one would do without this package; the configs are there already."""
        folders = [self.work / "disk" / model.name for model in self.models]
        stages = []
        for folder, model in zip(folders, self.models, strict=True):
            folder.mkdir()
            shutil.copy(model / "config.json", folder)
            stages.append(self._move("download", 16, folder / WEIGHTS, f"{self.url}/{model.name}/{WEIGHTS}"))
        output = self.work / "disk" / "out"
        stages.append(mergekit.merge(folders, output, dtype=dtype, flags=("--async-write",)))
        stages.append(self._move("upload", 8, output / WEIGHTS, f"{self.url}/out/{WEIGHTS}"))
        return {
            "wall": sum(stage.wall for stage in stages),
            "cpu": sum(stage.cpu for stage in stages),
            "peak": max(stage.peak for stage in stages),
            "merge_wall": stages[-2].wall,
        }

    def _recipe(self, engine: str) -> Path:
        path = self.work / f"{engine}.yaml"
        document = {
            "base": f"{self.url}/new",
            "deltas": [{"post": f"{self.url}/post", "base": f"{self.url}/old"}],
            "output": f"{self.url}/out",
            "storage": {f"{self.url}/": {"engine": engine}},
        }
        path.write_text(json.dumps(document))
        return path

    def _package(self, *arguments: str | Path) -> harness.Finished:
        return harness.run([sys.executable, "-m", "paramdelta_dist", *arguments, "--json"], env=self.env)

    def _move(self, verb: str, requests: int, *places: str | Path) -> harness.Finished:
        return harness.run([sys.executable, "-m", "benchmarks.objects", verb, str(requests), *places], env=self.env)

    def _remove(self, prefix: str) -> None:
        client = self.server.client()
        for found in client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", []):
            client.delete_object(Bucket=self.bucket, Key=found["Key"])
