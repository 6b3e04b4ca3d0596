"""A local merge in the shape of Llama-3.2-1B, against mergekit, and against the bare moving of its bytes."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, harness, mergekit
from benchmarks.harness import Figures

LAYERS = 16
MIB = 1 << 20
START = "import torch"
"""What mergekit's begins with, alone."""
SIMPLE_FLOOR = (1, 4 * MIB, "plain")
"""Threads, block size and way of writing that come to mind first."""
FLOORS = [*itertools.product((1, 2), (MIB // 4, MIB, 4 * MIB, 8 * MIB), ("plain", "preallocated", "direct"))]


def measure() -> dict[str, Any]:
    models = checkpoints.random_models(LAYERS)
    files = [model / "model.safetensors" for model in models]
    size = sum(file.stat().st_size for file in files)
    work = harness.cache() / "local"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    ours, theirs = work / "ours", work / "mergekit-float32"

    def alone(output: Path, started: Callable[[], harness.Finished]) -> Callable[[], Figures]:
        """The run of `started`, which writes `output`, from the same start as every other run."""

        def run() -> Figures:
            shutil.rmtree(output, ignore_errors=True)
            harness.settle(files)
            return started().figures

        return run

    def floor(way: tuple[int, int, str]) -> Callable[[], Figures]:
        threads, block, writing = way
        command = [
            sys.executable,
            "-I",
            "-S",
            Path(__file__).with_name("floor.py"),
            work / "floor" / "out",
            threads,
            block,
            writing,
            *files,
        ]

        def run() -> harness.Finished:
            (work / "floor").mkdir()
            return harness.run(list(map(str, command)))

        return alone(work / "floor", run)

    def mergekit_run(dtype: str, *flags: str) -> Callable[[], Figures]:
        output = work / f"mergekit-{dtype}"
        return alone(output, lambda: mergekit.merge(models, output, dtype=dtype, flags=flags))

    try:
        mergekit.environment()
        probed = {_name(way): min(floor(way)()["wall"] for _ in range(2)) for way in FLOORS}
        best = {min((way for way in FLOORS if way[2] == writing), key=lambda way: probed[_name(way)]) for _, _, writing in FLOORS}
        recipe = _recipe(models, work / "ours-halves", work / "halves.yaml", size // 5)
        runs = {
            "ours": alone(ours, lambda: harness.run(_merge("--base", *_arguments(models, ours)))),
            "ours, two shards": alone(work / "ours-halves", lambda: harness.run(_merge(recipe, "--workers", "2"))),
            "mergekit float32": mergekit_run("float32", "--async-write"),
            "mergekit bfloat16": mergekit_run("bfloat16", "--async-write"),
            "floor, simple": floor(SIMPLE_FLOOR),
            **{f"floor, {_name(way)}": floor(way) for way in sorted(best)},
            START: alone(work / "nothing", lambda: harness.run([sys.executable, "-c", "import torch"])),
        }
        measured = harness.in_turn(runs)
        differing = subprocess.run(
            [sys.executable, "-m", "benchmarks.local", "compare", ours, theirs], cwd=harness.REPOSITORY, check=True, capture_output=True
        )
    finally:
        shutil.rmtree(work)
    medians = harness.medians(measured)
    best_floor = min((name for name in medians if name.startswith("floor")), key=lambda name: medians[name]["wall"])
    return {
        "what": {
            "bytes_read": size,
            "bytes_written": size // 3,
            "inputs": "in the page cache",
            "before_each_run": "sync; inputs read once",
        },
        "peers": mergekit.versions(),
        "medians": medians,
        "runs": measured,
        "floors_probed": probed,
        "best_floor": best_floor,
        "elements_differing_from_mergekit_float32": json.loads(differing.stdout),
        "targets": [
            harness.target("times as fast as mergekit float32", medians["mergekit float32"]["wall"] / medians["ours"]["wall"], at_least=10),
            harness.target("of the speed of the simple floor", medians["floor, simple"]["wall"] / medians["ours"]["wall"], at_least=0.75),
            harness.target(
                f"of the speed of the best floor ({best_floor})", medians[best_floor]["wall"] / medians["ours"]["wall"], at_least=0.75
            ),
            harness.target("MB of peak memory, two workers", medians["ours, two shards"]["peak"] / 1e6, at_most=500),
        ],
    }


def show(document: dict[str, Any]) -> None:
    what = document["what"]
    moved = what["bytes_read"] + what["bytes_written"]
    ours = document["medians"]["ours"]["wall"]
    rows = [
        (name, each["wall"], each["cpu"], "" if name == START else moved / each["wall"] / 1e9, each["peak"] / 1e6, each["wall"] / ours)
        for name, each in document["medians"].items()
    ]
    harness.table(("", "wall s", "cpu s", "GB/s", "peak MB", "of ours"), rows)
    print(f"  medians of {harness.ROUNDS} in turn, whole processes; {moved / 1e9:.2f} GB moved; inputs in the page cache, a sync before")
    print("  mergekit's memory includes the input files that it maps")
    compared = document["elements_differing_from_mergekit_float32"]
    print(f"  ours and mergekit float32 differ in {compared['differing']:,} of {compared['elements']:,} elements")


def _name(way: tuple[int, int, str]) -> str:
    threads, block, writing = way
    return f"{writing}, {threads} thread{'s' * (threads > 1)}, {block // 1024} KiB"


def _merge(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "paramdelta_dist", "merge", *map(str, arguments), "--overwrite"]


def _arguments(models: Sequence[Path], output: Path) -> list[str]:
    new, post, old = map(str, models)
    return [new, "--delta", f"{post}:{old}", "--output", str(output)]


def _recipe(models: Sequence[Path], output: Path, path: Path, shard_size: int) -> Path:
    """A recipe whose output has shards of at most that many bytes."""
    new, post, old = map(str, models)
    document = {"base": new, "deltas": [{"post": post, "base": old}], "output": str(output), "shard_size": f"{shard_size // 10**6}MB"}
    path.write_text(json.dumps(document))
    return path


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """Elements of bfloat16 tensors whose bits differ between two folders of one file each, in little memory."""
    import numpy as np

    def tensors(folder: Path) -> dict[str, Any]:
        [path] = folder.glob("*.safetensors")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        places = json.loads(data[8 : 8 + length].tobytes())
        places.pop("__metadata__", None)
        return {name: data[8 + length :][slice(*each["data_offsets"])].view(np.uint16) for name, each in places.items()}

    mine, others = tensors(ours), tensors(theirs)
    if mine.keys() != others.keys():
        raise SystemExit(f"not the same tensors: {sorted(mine.keys() ^ others.keys())[:5]}")
    piece = 1 << 24
    differing = sum(
        int(np.count_nonzero(values[start : start + piece] != others[name][start : start + piece]))
        for name, values in mine.items()
        for start in range(0, len(values), piece)
    )
    return {"elements": sum(map(len, mine.values())), "differing": differing}


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[2]), Path(sys.argv[3]))))
