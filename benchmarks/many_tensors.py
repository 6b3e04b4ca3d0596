"""A Mixture of Experts of 100,000 small tensors against a dense model of the same bytes: what many tensors cost."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, harness
from benchmarks.checkpoints import MODELS, Shapes
from benchmarks.harness import Figures

CONFIG = {"model_type": "bench", "architectures": ["Bench"]}
HIDDEN = 256


def _experts(count: int, rows: int) -> Shapes:
    """Experts of [rows, HIDDEN] bfloat16."""
    return {f"model.layers.{n // 1024}.mlp.experts.{n % 1024}.up_proj.weight": (rows, HIDDEN) for n in range(count)}


def _dense(count: int, rows: int) -> Shapes:
    return {f"model.layers.{n}.mlp.up_proj.weight": (rows, HIDDEN) for n in range(count)}


CASES: dict[str, tuple[Shapes, int]] = {
    "100 of 256 MiB": (_dense(100, 512 << 10), 5),
    "100,000 of 256 KiB": (_experts(100_000, 512), 5),
    "100 of 16 MiB": (_dense(100, 32 << 10), 1),
    "100,000 of 16 KiB": (_experts(100_000, 32), 1),
}
"""Shapes of each of the three models, and in how many files they are. Experts of released models have megabytes each."""
DENSE, EXPERTS, DENSE_TINY, EXPERTS_TINY = CASES


def measure() -> dict[str, Any]:
    root = harness.cache() / "many-tensors"
    shutil.rmtree(root, ignore_errors=True)
    try:
        for case, (shapes, files) in CASES.items():
            harness.progress(f"making {case}")
            for model in MODELS:
                checkpoints.sparse(root / case / model, shapes, files=files, config=CONFIG)
        measured = harness.in_turn({case: _merging(root / case) for case in CASES})
    finally:
        shutil.rmtree(root)
    medians = harness.medians(measured)
    cases = {
        case: {
            "tensors": len(shapes),
            "bytes_written": size,
            **medians[case],
            "bytes_per_second": 4 * size / medians[case]["wall"],
        }
        for case, (shapes, _) in CASES.items()
        if (size := 2 * sum(map(math.prod, shapes.values())))
    }
    relative = cases[EXPERTS]["bytes_per_second"] / cases[DENSE]["bytes_per_second"]
    return {
        "what": "three checkpoints whose data are holes, read and merged; the output is written in full",
        "cases": cases,
        "runs": measured,
        "per_tensor": (medians[EXPERTS_TINY]["wall"] - medians[DENSE_TINY]["wall"]) / len(CASES[EXPERTS_TINY][0]),
        "targets": [harness.target("throughput, small ÷ large tensors", relative, at_least=0.9)],
    }


def show(document: dict[str, Any]) -> None:
    rows = [
        (case, each["bytes_written"] / 1e9, each["wall"], each["cpu"], each["peak"] / 1e6, each["bytes_per_second"] / 1e9)
        for case, each in document["cases"].items()
    ]
    harness.table(("tensors", "GB written", "wall s", "cpu s", "peak MB", "GB/s read + written"), rows)
    print(f"  medians of {harness.ROUNDS} in turn, whole processes; a tensor costs {1e6 * document['per_tensor']:.0f} µs beside its bytes")


def _merging(folder: Path) -> Callable[[], Figures]:
    new, post, old = (folder / model for model in MODELS)
    output = folder / "out"
    arguments = ["--base", new, "--delta", f"{post}:{old}", "--output", output, "--json"]

    def run() -> Figures:
        harness.settle()
        done = harness.run([sys.executable, "-m", "paramdelta_dist", "merge", *arguments])
        merged = json.loads(done.stdout)["tensors"]["merged"]
        if merged != len(CASES[folder.name][0]):
            raise RuntimeError(f"{folder.name}: {merged} tensors were merged of {len(CASES[folder.name][0])}")
        shutil.rmtree(output)
        return done.figures

    return run
