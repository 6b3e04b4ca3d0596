"""What chaos needs: merges as processes of their own, the places they write to, and what must be true in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.terminal import call

SITE = Path(__file__).parent / "site"
SHARDS = 6
SHARD_READS = 3 * 2 * 1350 * 500 * 4
"""Bytes of inputs behind one shard: two tensors of three models."""
TILE, PART = 1 << 20, 5 << 20
"""Small enough that the small model's shards have several tiles and, on S3, two parts."""
COMMIT, PLAN, REPORT = (f".paramdelta/{name}.json" for name in ("commit", "plan", "report"))
SECONDS = 300
"""More than any of these merges takes on a loaded machine."""


@dataclass
class Place:
    """Where models lie and an output grows: a folder on disk, or a prefix of a bucket."""

    models: tuple[str, str, str]
    """new, post and old."""
    output: str
    environ: Mapping[str, str] = field(default_factory=dict)
    client: Any = None
    """Of S3; None on disk."""

    def names(self) -> list[str]:
        """The files a reader of the output can see."""
        if self.client is None:
            root = Path(self.output)
            return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.name.endswith("-part")]
        bucket, prefix = self._prefix()
        listed = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"][len(prefix) :] for entry in listed]

    def files(self) -> dict[str, bytes]:
        """What is in them."""
        if self.client is None:
            return {name: Path(self.output, name).read_bytes() for name in self.names()}
        bucket, prefix = self._prefix()
        return {name: self.client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read() for name in self.names()}

    def leftovers(self) -> list[str]:
        """What killed writers left: hidden parts of files, uploads that are neither completed nor aborted."""
        if self.client is None:
            return [str(path) for path in Path(self.output).rglob("*-part")]
        bucket, prefix = self._prefix()
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])]

    def _prefix(self) -> tuple[str, str]:
        bucket, _, path = self.output.partition("://")[2].partition("/")
        return bucket, path + "/"


@dataclass
class Chaos:
    """A folder for a death and the environment that brings it about."""

    folder: Path
    point: str = ""
    role: str = ""
    pace: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "CHAOS_DIR": str(self.folder),
            "CHAOS_POINT": self.point,
            "CHAOS_ROLE": self.role,
            "CHAOS_PACE": str(self.pace),
            "CHAOS_TILE": str(TILE),
            "CHAOS_PART": str(PART),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH")))),
        }

    @property
    def struck(self) -> bool:
        return (self.folder / "struck").exists()

    @property
    def started(self) -> list[tuple[str, int]]:
        """Shards that were begun and the processes that began them, in order; a shard stands here once for each attempt."""
        log = self.folder / "started"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(name, int(process)) for name, process in (line.split() for line in lines)]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and that nobody has taken note of does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(*arguments: str, place: Place, chaos: Chaos | None = None, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command line with `arguments`, as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "paramdelta_dist", *arguments],
        env={**os.environ, **place.environ, **(chaos.environ if chaos else {}), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.output[-1500:]}\n{self.errors[-3000:]}"


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a process."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return Ended(process.returncode, output, errors)


def merge_arguments(recipe: Path, engine: str) -> list[str]:
    return ["merge", str(recipe), "--engine", engine, "--workers", "2", "--json"]


def write_recipe(path: Path, place: Place, **more: Any) -> Path:
    new, post, old = place.models
    document = {"base": new, "deltas": [{"post": post, "base": old, "weight": more.pop("weight", 1.0)}], "output": place.output}
    path.write_text(json.dumps({**document, "shard_size": "5.4MB", **more}))  # JSON is YAML
    return path


def model_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The part of an output that does not depend on where it is and how often it was tried: all that a loader reads."""
    return {name: data for name, data in files.items() if not name.startswith(".paramdelta/") and name != "README.md"}


def assert_complete(place: Place, quiet: Mapping[str, bytes]) -> dict[str, Any]:
    """The bytes of the quiet run, one commit that tells the truth, nothing left over after `clean`. Returns the report."""
    files = place.files()
    model = model_of(files)
    assert model.keys() == quiet.keys()
    assert [name for name in quiet if model[name] != quiet[name]] == []
    assert [name for name in files if "commit" in name] == [COMMIT]
    commit = json.loads(files[COMMIT])
    assert commit["files"].keys() == {name for name in files if not name.startswith(".paramdelta/")}
    assert {name: entry["digest"] for name, entry in commit["files"].items()} == {
        name: blake3(files[name]).hexdigest() for name in commit["files"]
    }
    assert commit["fingerprint"] == json.loads(files[PLAN])["fingerprint"]
    state = call("status", place.output, "--json", cwd=Path(), **place.environ)
    assert json.loads(state.stdout)["state"] == "complete", state
    cleaned = call("clean", place.output, "--older-than", "0s", "--yes", cwd=Path(), **place.environ)
    assert cleaned.returncode == 0, cleaned
    assert place.leftovers() == []
    assert place.files() == files
    report: dict[str, Any] = json.loads(files[REPORT])
    return report
