"""Planning from local disk: sparse checkpoints of up to a trillion parameters in 200,000 tensors, and the start of the command."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, harness
from benchmarks.checkpoints import MODELS, Shapes
from benchmarks.harness import Figures

CONFIG = {"model_type": "bench", "architectures": ["Bench"]}


def _experts(count: int) -> Shapes:
    """64 layers of so many experts of 15.7M parameters each; 1,040 of them make 1.05T parameters in 200k tensors."""
    return checkpoints.experts(layers=64, experts=count, hidden=4096, intermediate=1280, kv=1024, vocabulary=128_256)


def _dense() -> Shapes:
    return checkpoints.llama(layers=126, hidden=16_384, intermediate=53_248, kv=1024, vocabulary=128_256, tied=False)


CASES: dict[str, tuple[Shapes, tuple[int, int, int]]] = {
    "experts, 2k tensors": (_experts(8), (2, 2, 2)),
    "experts, 20k tensors": (_experts(102), (20, 20, 20)),
    "experts, 200k tensors": (_experts(1040), (200, 200, 200)),
    "experts, 200k tensors, other files": (_experts(1040), (200, 190, 170)),
    "dense 405B": (_dense(), (191, 191, 191)),
}
"""Shapes of the three models, and in how many files each is: in as many, they have the same headers, as models of one family do."""
LARGEST = "experts, 200k tensors"
UNLIKE = "experts, 200k tensors, other files"
RULED = "experts, 200k tensors, rules"
RULES = [
    {"match": "*.mlp.gate.weight", "value": 0.0},
    {"match": ["*.experts.1*.up_proj.*", "*.experts.2*.down_proj.*"], "value": 0.9},
    {"component": "attention", "value": 0.8},
    {"component": ["norm", "router"], "value": 1.0},
    {"component": "expert", "layers": "0-31", "value": [0.2, 1.0]},
    {"component": "expert", "layers": "32-", "value": [1.0, 0.4]},
    {"match": ["*embed*", "lm_head*"], "value": 0.5},
    {"value": 1.0},
]


def measure() -> dict[str, Any]:
    root = harness.cache() / "planning"
    shutil.rmtree(root, ignore_errors=True)
    try:
        for case, (shapes, files) in CASES.items():
            harness.progress(f"making {case}")
            for model, count in zip(MODELS, files, strict=True):
                checkpoints.sparse(root / case / model, shapes, files=count, config=CONFIG)
        runs: dict[str, Callable[[], Figures]] = {case: _planning(root / case, _flags(root / case)) for case in CASES}
        runs[RULED] = _planning(root / LARGEST, [_recipe(root / LARGEST)])
        runs["--help"] = lambda: harness.run([sys.executable, "-m", "paramdelta_dist", "--help"]).figures
        runs["python -c pass"] = lambda: harness.run([sys.executable, "-c", "pass"]).figures
        measured = harness.in_turn(runs, rounds=5)
    finally:
        shutil.rmtree(root)
    medians = harness.medians(measured)
    cases = {
        case: {
            "tensors": len(shapes),
            "files": files,
            "parameters": sum(map(math.prod, shapes.values())),
            **medians[case],
            "per_tensor": (medians[case]["wall"] - medians["--help"]["wall"]) / len(shapes),
        }
        for case, (shapes, files) in {**CASES, RULED: CASES[LARGEST]}.items()
    }
    growth = cases[LARGEST]["per_tensor"] / cases["experts, 20k tensors"]["per_tensor"]
    return {
        "what": "three checkpoints: real headers, data are holes; headers in the page cache",
        "cases": cases,
        "help": medians["--help"],
        "python": medians["python -c pass"],
        "runs": measured,
        "targets": [
            harness.target(f"s, {LARGEST}", medians[LARGEST]["wall"], at_most=5),
            harness.target(f"MB of peak memory, {LARGEST}", medians[LARGEST]["peak"] / 1e6, at_most=600),
            harness.target(f"s, {UNLIKE}", medians[UNLIKE]["wall"], at_most=5),
            harness.target(f"MB of peak memory, {UNLIKE}", medians[UNLIKE]["peak"] / 1e6, at_most=600),
            harness.target("time with rules ÷ without, 200k tensors", medians[RULED]["wall"] / medians[LARGEST]["wall"], at_most=1.5),
            harness.target("s, dense 405B", medians["dense 405B"]["wall"], at_most=5),
            harness.target("linear: time of a tensor among 200k ÷ among 20k", growth, at_most=1.25),
            harness.target("s, --help", medians["--help"]["wall"], at_most=0.3),
        ],
    }


def show(document: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for case, each in document["cases"].items():
        size = (f"{each['tensors']:,}", ", ".join(map(str, dict.fromkeys(each["files"]))), f"{each['parameters'] / 1e9:,.0f}B")
        rows.append((case, *size, each["wall"], each["cpu"], each["peak"] / 1e6, 1e6 * each["per_tensor"]))
    for name, each in (("--help", document["help"]), ("python alone", document["python"])):
        rows.append((name, "", "", "", each["wall"], each["cpu"], each["peak"] / 1e6, ""))
    harness.table(("plan of three", "tensors", "files", "parameters", "wall s", "cpu s", "peak MB", "µs a tensor"), rows)
    print("  medians of 5 in turn, whole processes; tensors, files and parameters of each model; µs a tensor without the time of --help")


def _flags(folder: Path) -> list[str | Path]:
    new, post, old = (folder / model for model in MODELS)
    return ["--base", new, "--delta", f"{post}:{old}", "--output", folder / "out"]


def _recipe(folder: Path) -> Path:
    """A recipe file with the same models and weights by RULES; JSON is YAML."""
    new, post, old = (str(folder / model) for model in MODELS)
    document = {"base": new, "deltas": [{"post": post, "base": old, "weight": RULES}], "output": str(folder / "out")}
    path = folder / "rules.yaml"
    path.write_text(json.dumps(document))
    return path


def _planning(folder: Path, arguments: Sequence[str | Path]) -> Callable[[], Figures]:
    def run() -> Figures:
        done = harness.run([sys.executable, "-m", "paramdelta_dist", "plan", *arguments, "--json"])
        tensors = json.loads(done.stdout)["tensors"]["merged"]
        if tensors != len(CASES[folder.name][0]):
            raise RuntimeError(f"{folder.name}: the plan merges {tensors} tensors of {len(CASES[folder.name][0])}")
        return done.figures

    return run
