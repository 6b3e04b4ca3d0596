"""A folder in which the commands of a page run as its reader's would: `paramdelta-dist` is on the path, the recipes are there."""

import os
import subprocess
import sys

import pytest

from tests.docs.pages import REPOSITORY, blocks, recipe_files


class Reader:
    """Who follows a page, top to bottom, in one folder."""

    def __init__(self, folder, environ):
        self.folder, self.environ = folder, environ

    def run(self, script):
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def follow(self, page, environ=None):
        """Every block of commands that is not marked; returns their outputs. Python blocks too."""
        self.environ |= environ or {}
        for name, text in recipe_files(page).items():
            (self.folder / name).write_text(text)
        outputs = []
        for block in blocks(page):
            if block.language not in ("bash", "python") or block.not_run:
                continue
            script = block.text if block.language == "bash" else f"python3 - <<'EOF'\n{block.text}EOF\n"
            done = self.run(f"{block.setup or ':'}\n{script}")
            assert done.returncode == 0, f"{block}: exit {done.returncode}\n{script}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
        return outputs


@pytest.fixture
def reader(tmp_path):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, command in {"paramdelta-dist": "-m paramdelta_dist", "python3": ""}.items():
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (binaries / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    path = os.pathsep.join((str(binaries), os.environ["PATH"]))
    return Reader(folder, {**os.environ, "PATH": path, "PYTHONPATH": paths, "HOME": str(tmp_path)})
