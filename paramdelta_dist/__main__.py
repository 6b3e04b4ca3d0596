"""The command line as a program: `paramdelta-dist`, or `python -m paramdelta_dist`."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Entry point of the console script. Ends the process."""
    if sys.platform == "win32":  # first of all: the next import fails there
        sys.stderr.write("error: paramdelta-dist runs on Linux and macOS: on Windows, install and run it in WSL (wsl --install)\n")
        sys.exit(2)
    from paramdelta_dist.cli import process

    process.run(_command)


def _command() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy starts a thread for each core, which nothing here uses
    from paramdelta_dist.cli.commands import app  # only now: this takes a moment, in which a signal may come
    from paramdelta_dist.engine.machine import keep_freed_memory
    from paramdelta_dist.redaction import print_traceback, redact_process

    redact_process()
    keep_freed_memory()
    gc.set_threshold(100_000, 50, 100)  # a plan is a million objects without a cycle, and searching them takes a second each time
    try:
        app(prog_name="paramdelta-dist")
    except Exception as error:  # a bug of ours; typer has an excepthook of its own
        print_traceback(error)
        sys.exit(1)
    finally:
        gc.freeze()  # so that the interpreter does not search them once more before it ends


if __name__ == "__main__":
    main()
