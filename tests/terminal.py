"""The command line without a process of its own: starting one takes a second, of which most tests have nothing."""

from __future__ import annotations

import io
import os
import subprocess
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest

WIDE = {"TERM": "dumb", "COLUMNS": "200"}


def call(*arguments: str | os.PathLike[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `paramdelta-dist` with these arguments gives in a folder. What a process would end with as a traceback is one here."""
    out, err = _terminal(), _terminal()
    line = list(map(os.fspath, arguments))
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        for name, value in {**WIDE, **environment}.items():
            patch.setenv(name, value)
        try:
            command()(line, prog_name="paramdelta-dist")
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(line, code, _text(out), _text(err))


@cache
def command() -> Any:
    """What typer makes of our functions, once: it takes longer than most commands."""
    import typer

    from paramdelta_dist.cli import commands

    return typer.main.get_command(commands.app)


def _terminal() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)


def _text(terminal: io.TextIOWrapper) -> str:
    assert isinstance(terminal.buffer, io.BytesIO)
    return terminal.buffer.getvalue().decode()
