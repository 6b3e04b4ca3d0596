"""`make bench`: a local merge against the floor, the same bytes read and written without arithmetic, in turn in one run.

Machines are noisy, so the ratio of medians counts, not a time. Results go to benchmarks/results/ with how they were made.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
HIDDEN, LAYERS, VOCABULARY = 2048, 8, 32_000
"""A model of 0.9 GB in bfloat16, with the layer shapes of Llama-3.2-1B."""

FLOOR = """
import os, sys
output, *inputs = sys.argv[1:]
buffer = memoryview(bytearray(4 << 20))
out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for number, path in enumerate(inputs):
    file = os.open(path, os.O_RDONLY)
    while count := os.readv(file, [buffer]):
        if number == 0:
            os.write(out, buffer[:count])
"""
"""Reads every input into one buffer and writes the first."""


def make_models(root: Path) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in (("q", (HIDDEN, HIDDEN)), ("o", (HIDDEN, HIDDEN)), ("up", (4 * HIDDEN, HIDDEN)), ("down", (HIDDEN, 4 * HIDDEN))):
            shapes[f"model.layers.{layer}.{name}_proj.weight"] = shape
    folders = [root / name for name in ("new", "post", "old")]
    for folder in folders:
        folder.mkdir()
        tensors = {name: (0.02 * torch.randn(shape, generator=generator)).bfloat16() for name, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "bench", "architectures": ["Bench"]}')
    return folders


def timed(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds of a command, and its peak memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return {"wall": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        subprocess.run([sys.executable, "-m", "benchmarks", "models", folder], check=True)  # torch's memory is not this process's
        new, post, old = root / "new", root / "post", root / "old"
        files = [str(path / "model.safetensors") for path in (new, post, old)]
        merge = [
            sys.executable,
            "-m",
            "paramdelta_dist",
            "merge",
            "--base",
            str(new),
            "--delta",
            f"{post}:{old}",
            "--output",
            str(root / "out"),
        ]
        runs = {"merge": [*merge, "--overwrite"], "floor": [sys.executable, "-c", FLOOR, str(root / "copy"), *files]}
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, command in runs.items():
                measured[name].append(timed(command))
                shutil.rmtree(root / "out", ignore_errors=True) if name == "merge" else (root / "copy").unlink()
        size = sum(Path(file).stat().st_size for file in files) * 4 / 3
    medians = {name: {key: statistics.median(run[key] for run in each) for key in each[0]} for name, each in measured.items()}
    print(f"{'':8}{'wall s':>8}{'cpu s':>8}{'GB/s':>8}{'peak MiB':>10}   medians of {ROUNDS}, {size / 1e9:.2f} GB moved")
    for name, row in medians.items():
        print(f"{name:8}{row['wall']:8.2f}{row['cpu']:8.2f}{size / 1e9 / row['wall']:8.2f}{row['peak'] / 2**20:10.0f}")
    ratio = medians["floor"]["wall"] / medians["merge"]["wall"]
    print(f"floor / merge, start of the process included: {ratio:.2f}")
    RESULTS.mkdir(exist_ok=True)
    about = {"command": "make bench", "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    versions = {name: version(name) for name in ("paramdelta-dist", "torch", "safetensors")}
    document = {**about, "versions": versions, "bytes_moved": size, "medians": medians, "floor_over_merge": ratio, "runs": measured}
    (RESULTS / "local-merge.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["models"]:
        make_models(Path(sys.argv[2]))
    else:
        main()
