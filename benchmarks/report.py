"""What `merge --report` costs: the same merges and sweeps with and without it, in turn."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, harness
from benchmarks.harness import Figures

PAIRS = 7
SMALL, LARGE = 3, 16
"""Layers of the models: 0.89 and 2.47 GB each."""
WEIGHTS = (0, 0.25, 0.5, 1, 1.5)
"""Points of the sweep, of the small models."""
MOST = 1.10


def measure() -> dict[str, Any]:
    work = harness.cache() / "report"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        cases = {
            "0.89 GB each": _pairs(_recipe(work, SMALL), SMALL),
            "2.47 GB each": _pairs(_recipe(work, LARGE), LARGE),
            "0.89 GB each, five points": _pairs(_recipe(work, SMALL, sweep=True), SMALL),
        }
    finally:
        shutil.rmtree(work)
    return {
        "what": {"pairs": PAIRS, "inputs": "in the page cache", "before_each_run": "sync; inputs read once"},
        "cases": cases,
        "targets": [
            harness.target(f"{key} with the report, {name}", case["ratios"][key], at_most=MOST)
            for name, case in cases.items()
            for key in ("cpu", "wall")
        ],
    }


def show(document: dict[str, Any]) -> None:
    rows = []
    for name, case in document["cases"].items():
        for run, each in case["medians"].items():
            rows.append((f"{name}, {run}", each["wall"], each["cpu"], each["peak"] / 1e6))
        for kind in ("ratios", "noise"):
            label = "with / without" if kind == "ratios" else "without / without"
            rows.append((f"{name}, {label}", case[kind]["wall"], case[kind]["cpu"], ""))
    harness.table(("", "wall s", "cpu s", "peak MB"), rows)
    print(f"  medians of {PAIRS} in turn, whole processes; ratios are medians of the ratios of neighbours")


def _pairs(recipe: Path, layers: int) -> dict[str, Any]:
    files = [model / "model.safetensors" for model in checkpoints.random_models(layers)]
    output = Path(json.loads(recipe.read_text())["output"])

    def run(*flags: str) -> Callable[[], Figures]:
        def once() -> Figures:
            shutil.rmtree(output, ignore_errors=True)
            harness.settle(files)
            return harness.run([sys.executable, "-m", "paramdelta_dist", "merge", str(recipe), *flags]).figures

        return once

    run()()  # what is compiled and cached by a first run is nobody's cost
    measured = harness.in_turn({"without": run(), "with": run("--report"), "without again": run()}, rounds=PAIRS)
    shutil.rmtree(output)
    return {
        "medians": harness.medians(measured),
        "ratios": _ratios(measured["with"], measured["without"]),
        "noise": _ratios(measured["without again"], measured["without"]),
        "runs": measured,
    }


def _ratios(some: Sequence[Figures], others: Sequence[Figures]) -> Figures:
    """Medians of the ratios of what ran one after the other."""
    return {key: statistics.median(one[key] / other[key] for one, other in zip(some, others, strict=True)) for key in some[0]}


def _recipe(work: Path, layers: int, *, sweep: bool = False) -> Path:
    new, post, old = map(str, checkpoints.random_models(layers))
    name = f"{layers}-layers{'-swept' if sweep else ''}"
    document: dict[str, Any] = {"base": new, "deltas": [{"post": post, "base": old}], "output": str(work / name)}
    if sweep:
        document["sweep"] = {"weight": WEIGHTS}
    (work / f"{name}.yaml").write_text(json.dumps(document))
    return work / f"{name}.yaml"
