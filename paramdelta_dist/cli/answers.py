"""Answers of a command: a document or a rendering on standard output, and one message with an exit code for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from paramdelta_dist import stopping
from paramdelta_dist.cli import process
from paramdelta_dist.errors import Interrupted, ParamDeltaError, StorageError
from paramdelta_dist.redaction import redacted, redacted_values


@contextmanager
def reporting(as_json: bool, stopped: str = "stopped", *, tells: bool = False) -> Iterator[None]:
    """Turn our errors into one message and their exit code; a bug keeps its traceback.

    `stopped` is what a stop means, unless what is done says something closer with `stopping.say`. With `tells`, all that comes of a
    command is what it prints: then a full disk there is an error, where a merge goes on.
    """
    waiting = stopping.Waiting()
    stopping.say(stopped)
    process.speak_by(lambda text: _tell(Interrupted(text), as_json))
    try:
        yield
        if tells:
            _require_told()
    except (KeyboardInterrupt, ParamDeltaError) as error:
        if waiting.over:
            raise typer.Exit(Interrupted.exit_code) from None  # the process has the last words
        fail(error if isinstance(error, ParamDeltaError) else Interrupted(stopping.farewell()), as_json)


def _require_told() -> None:
    output = process.standard_output()
    if output is not None and output.lost is not None and not output.unread:
        raise StorageError(f"standard output took only a part of this: {output.lost.strerror}")


def fail(error: ParamDeltaError, as_json: bool) -> None:
    _tell(error, as_json)
    raise typer.Exit(error.exit_code) from None


def _tell(error: ParamDeltaError, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}})
    print("error:", printable(str(error), keep="\n"), file=sys.stderr)


def printable(value: Any, *, keep: str = "") -> Any:
    """Plain values without secrets, and without the characters that a terminal obeys: names among them may come from a stranger's file."""
    if isinstance(value, str):
        value = redacted(value)
        return value if value.isprintable() else "".join(c if c in keep or c.isprintable() else repr(c)[1:-1] for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(entry) for key, entry in value.items()}
    return [printable(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def show(document: dict[str, Any], render: Any, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        render(printable(document))


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps(redacted_values(document), indent=2), flush=True)  # ASCII, so that no name and no terminal's encoding can stop it
