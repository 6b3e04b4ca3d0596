"""Outputs as a version wrote them: where they are kept, how they are put back, and what of their documents is a run's own.

`python -m tests.golden.kept` keeps those of the package as it is now, below a folder named by its version.
"""

import json
import os
import shutil
from pathlib import Path

from paramdelta_dist import __version__, api
from paramdelta_dist.recipe.model import Recipe
from tests import servers
from tests.golden.merges import BUCKET, make_inputs, recipes

KEPT = Path(__file__).parent / "kept"
INPUTS = f"s3://{BUCKET}"
"""Where the inputs are: a store that makes tags of bytes gives them the same identity on every machine."""
OF_A_RUN = (
    "run",
    "seal",
    "tag",
    "committed",
    "seconds",
    "bytes_per_second",
    "peak_memory",
    "projected_memory",
    "worker",
    "requests",
    "bytes_read",
    "workers",
    "output",
)
"""Keys of documents whose values are of one run, at any depth; only that they are there is held."""


def upload_inputs(server, root):
    client = server.client()
    make_inputs(root)
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=str(path.relative_to(root)), Body=path.read_bytes())


def merge(name, output):
    return api.merge(Recipe.model_validate({**recipes(INPUTS)[name], "output": str(output)}))


def restore(kept, folder):
    """Put a kept output at `folder`, every file with the time by which its documents know it."""
    shutil.copytree(kept, folder)
    for document in folder.rglob("*.json"):
        if document.parent.name == "receipts":
            receipt = json.loads(document.read_text())
            _set_time(document.parent.parent.parent / receipt["file"], receipt["tag"])
        elif document.name == "commit.json":
            for name, file in json.loads(document.read_text())["files"].items():
                _set_time(document.parent.parent / name, file["tag"])
    return folder


def _set_time(path, tag):
    os.utime(path, ns=(int(tag), int(tag)))


def steady(value):
    """A document without what is of one run."""
    if isinstance(value, dict):
        return {key: "…" if key in OF_A_RUN else steady(entry) for key, entry in value.items()}
    return [steady(entry) for entry in value] if isinstance(value, list) else value


def content(folder):
    """What an output holds by name: bytes, or of documents of ours what no run changes."""
    held = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file():
            held[name] = path.read_bytes()
            if name.endswith(".json") and (".paramdelta/" in name or name == "sweep.json"):
                held[name] = steady(json.loads(held[name]))
    return held


def keep(root):
    """Make every kept merge below `root` and keep it."""
    for name in recipes(INPUTS):
        merge(name, root / name)
        shutil.copytree(root / name, KEPT / __version__ / name)


if __name__ == "__main__":
    root = Path("/tmp/paramdelta-golden")
    with servers.s3_server() as server:
        os.environ.update(server.environ)
        upload_inputs(server, root / "inputs")
        keep(root / "out")
    shutil.rmtree(root)
