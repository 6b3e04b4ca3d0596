"""What programs read of ours, as sorted lines: keys of documents with their types, metrics, exit codes, paths, the group of entry points.

`python -m tests.golden.surfaces` writes surfaces.txt, and digests of what methods make, as they are now: for a change that is meant.
"""

import contextlib
import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from typer.testing import CliRunner

from paramdelta_dist import api, errors
from paramdelta_dist.cli import commands as cli
from paramdelta_dist.engine.metrics import METRICS
from paramdelta_dist.methods import ENTRY_POINTS, METHODS
from tests.golden.merges import make_inputs, recipes
from tests.methods.method_cases import recipe_for, variants

SURFACES = Path(__file__).with_name("surfaces.txt")
DIGESTS = Path(__file__).with_name("digests.json")
BY_NAME = ("inputs", "locations", "files", "tensors", "accounts")
"""Keys whose value is keyed by names of models, files or tensors: one stands for all."""


def surfaces(root):
    """The lines, made with models below `root`."""
    lines = [f"metric {m.name} {m.label}: {' '.join(m.values)}" for m in METRICS] + [f"entry points {ENTRY_POINTS}"]
    lines += [f"exit code {cls.__name__} {cls.exit_code}" for cls in vars(errors).values() if hasattr(cls, "exit_code")]
    make_inputs(root)
    documents = recipes(root)
    for name in ("paramdelta", "by-token", "sweep"):
        (root / f"{name}.yaml").write_text(json.dumps({**documents[name], "output": str(root / "out" / name)}))
    (root / "mergekit.yaml").write_text(json.dumps({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}] * 2}))
    for command in (
        "check paramdelta.yaml", "plan paramdelta.yaml", "plan by-token.yaml", "plan sweep.yaml",
        "merge paramdelta.yaml --report", "merge sweep.yaml", "merge by-token.yaml", "merge paramdelta.yaml",
        "status out/paramdelta", "verify out/paramdelta --deep", "inspect bf16-new",
        "analyze paramdelta.yaml --output analysis", "clean out/paramdelta", "methods", "methods ties",
        "import mergekit.yaml --output made.yaml",
    ):  # fmt: skip
        with _inside(root):
            done = CliRunner().invoke(cli.app, [*command.split(), "--json"])
        lines.append(f"{command}: exit {done.exit_code}")
        lines += sorted({f"{command}: stdout {path}" for path in _paths(json.loads(done.stdout or "null"))})
        for event in map(json.loads, filter(lambda line: line.startswith("{"), done.stderr.splitlines())):
            if event["event"] != "progress":  # which comes by the clock
                lines += sorted({f"{command}: line {event['event']} {path}" for path in _paths(event)})
    for output in ("paramdelta", "sweep"):
        folder = root / "out" / output
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                lines.append(f"{output}/{path.relative_to(folder)}")
                if path.suffix == ".json" and ".paramdelta" in path.parts:
                    lines += sorted({f"{output}/{path.relative_to(folder)} {key}" for key in _paths(json.loads(path.read_text()))})
    return list(dict.fromkeys(lines))


@contextlib.contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def bytes_of(method, models, root):
    """Digests of what a method makes in every dtype, with its defaults and with what thins out, by a name for each."""
    made, parameters = {}, next(variants(method))
    needed = {parameter.name: parameter.default is None for parameter in method.parameters}
    for dtype, thinned in (("bf16", False), ("f16", True), ("f32", True)):
        label = f"{method.name} {dtype} {'thinned' if thinned else 'default'}"
        folders = [models / f"{dtype}-{model}" for model in ("old", "post", "other", "third")]
        output = root / label.replace(" ", "-")
        given = {key: value for key, value in parameters.items() if thinned or needed[key]}
        api.merge(recipe_for(method, folders, output, given))
        made[label] = sha256(b"".join(path.read_bytes() for path in sorted(output.glob("*.safetensors")))).hexdigest()[:32]
    return made


def _paths(value, at=""):
    if isinstance(value, dict):
        named = at.rpartition(".")[2] in BY_NAME
        for key, entry in value.items():
            yield from _paths(entry, f"{at}.{'NAME' if named and ('/' in key or '.' in key) else key}")
    elif isinstance(value, list):
        yield f"{at} list"
        for entry in value:
            yield from _paths(entry, f"{at}[]")
    else:
        yield f"{at} {'number' if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        SURFACES.write_text("\n".join(surfaces(Path(folder))) + "\n")
        digests = {}
        for method in METHODS:
            digests |= bytes_of(method, Path(folder), Path(folder) / "made")
        DIGESTS.write_text(json.dumps(digests, indent=0) + "\n")
