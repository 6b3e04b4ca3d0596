"""mergekit from PyPI in an environment of its own, and ParamΔ in its words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness

VERSION = "0.1.5"
REQUIREMENTS = (f"mergekit=={VERSION}", "torch>=2.6,<2.14")
"""The torch of the package's own requirement, so that both merge with the same one; mergekit's requirements do the rest."""
FLAGS = ("--lazy-unpickle", "--no-copy-tokenizer", "--no-write-model-card", "--quiet")
"""Nothing is done that is not merging: the models have no tokenizer."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def environment() -> Path:
    """Its virtual environment, made on first use."""
    folder = harness.cache() / f"mergekit-{VERSION}"
    done = folder / "done"
    if not done.exists():
        print(f"  installing mergekit {VERSION} in {folder} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        done.touch()
    return folder


def versions() -> dict[str, str]:
    """Of what takes part in its merges."""
    code = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    names = ("mergekit", "torch", "transformers", "safetensors")
    found: dict[str, str] = json.loads(harness.run([environment() / "bin" / "python", "-c", code, *names]).stdout)
    return found


def merge(models: Sequence[Path], output: Path, *, dtype: str, flags: Sequence[str] = ()) -> harness.Finished:
    """Run new + (post − old). Its one `base_model` must be the old base, so ParamΔ is old + (new − old) + (post − old)."""
    new, post, old = map(str, models)
    config = {
        "merge_method": "task_arithmetic",
        "base_model": old,
        "models": [{"model": model, "parameters": {"weight": 1.0}} for model in (new, post)],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": dtype,
        "out_dtype": "bfloat16",
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is YAML
    return harness.run([environment() / "bin" / "mergekit-yaml", path, output, *FLAGS, *flags], env=OFFLINE)
