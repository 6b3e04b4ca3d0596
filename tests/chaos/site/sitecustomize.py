"""Death, or a stop, at a named point. Python loads this file by itself where its folder is on the path; the package knows nothing of it.

A process under test, and the workers of a Ray that it starts, inherit in the environment

CHAOS_DIR     a folder for what happened: `started` has a line for every put that began, `struck` exists after the kill
CHAOS_POINT   where to kill: a key of POINTS
CHAOS_ROLE    whom: process or driver (the process that was started first), worker (a Ray actor's process),
              node (a worker's raylet and the worker with it), or stopped: this process, by SIGSTOP, so that it can go on
CHAOS_PACE    seconds to wait after each tile, so that there is time to be killed in
CHAOS_TILE    bytes of a tile, CHAOS_PART of a part of an upload: small models then have several of them

The kill is SIGKILL or SIGSTOP, once in all, whichever process comes to the point first.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

POINTS = {
    "first tile": 1,
    "mid shard": 2,
    "before the put completes": 2,
    "after the put and before the receipt": 2,
    "between shards and index": 1,
    "before the commit": 1,
    "before the pointer": 1,
    "after the claim is asked for a shard": 2,
    "after a receipt": 2,
    "before a side file": 1,
    "after a side file": 1,
    "after the index": 1,
    "before the card": 1,
    "before the report": 1,
    "after the report": 1,
    "before config.json": 1,
    "after config.json": 1,
    "after the commit": 1,
    "before the plan": 1,
    "after the plan": 1,
    "before the first delete": 1,
    "after the first delete": 1,
    "amid the deletes": 5,
    "before the plan without its list": 2,
    "after the plan without its list": 2,
    "while an output is removed": 4,
}
"""How many times a process comes to each point until it is struck there: beyond the first, something is finished and can be kept."""
WRITES = {
    "generation_config.json": (["before a side file"], ["after a side file"]),
    "model.safetensors.index.json": ([], ["after the index"]),
    "README.md": (["before the card"], []),
    ".paramdelta/report.json": (["before the report"], ["after the report"]),
    "config.json": (["before config.json"], ["after config.json"]),
    ".paramdelta/commit.json": ([], ["after the commit"]),
    ".paramdelta/plan.json": (
        ["before the plan", "before the plan without its list"],
        ["after the plan", "after the plan without its list"],
    ),
}
NOWHERE: tuple[list[str], list[str]] = ([], [])
"""Points before and after the write of a file."""
PARTS_ARRIVE_SECONDS = 0.3
"""What parts that are under way get before the death that leaves them in an upload nobody completes."""
HELD_SECONDS = 120

folder = Path(os.environ.get("CHAOS_DIR", "/nonexistent"))
struck_at, role = os.environ.get("CHAOS_POINT"), os.environ.get("CHAOS_ROLE")
first_process = int(os.environ.setdefault("CHAOS_FIRST_PROCESS", str(os.getpid())))
arrivals = 0
lock = threading.Lock()


def arrive(point):
    """Be at a point; the process may not come out of it alive."""
    global arrivals
    with lock:
        arrivals += point == struck_at
        strike = point == struck_at and arrivals >= POINTS[point]
    if strike:
        with suppress(FileExistsError):
            os.close(os.open(folder / "struck", os.O_CREAT | os.O_EXCL))
            kill()


def kill():
    if role == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if role == "node":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(first_process if role == "driver" else os.getpid(), signal.SIGKILL)
    if role == "driver":
        time.sleep(HELD_SECONDS)  # a worker that outlives its driver stays where it was until Ray ends it
    os.kill(os.getpid(), signal.SIGKILL)


def watched(chunks, size):
    """The chunks of a put: a header, then tiles."""
    sent = 0
    for number, chunk in enumerate(chunks):
        before, sent = sent, sent + len(chunk)
        if number == 1:
            arrive("first tile")
        if before < size // 2 <= sent:
            arrive("mid shard")
        yield chunk
        time.sleep(float(os.environ.get("CHAOS_PACE", "0")))
    if struck_at == "before the put completes":
        time.sleep(PARTS_ARRIVE_SECONDS)
    arrive("before the put completes")


def watch_store(name):
    def patch(module):
        store = getattr(module, name)
        put, write, delete, identify = store.put, store.write, store.delete, store.identify

        def watched_put(self, name, chunks, *, size):
            with (folder / "started").open("a") as log:
                log.write(f"{name} {os.getpid()}\n")
            return put(self, name, watched(chunks, size), size=size)

        def watched_write(self, name, data, **options):
            if name.startswith(".paramdelta/receipts/"):
                arrive("after the put and before the receipt")
            if name == "model.safetensors.index.json":
                arrive("between shards and index")
            if name == ".paramdelta/commit.json":
                arrive("before the commit")
            if name == "latest.json":
                arrive("before the pointer")
            for point in WRITES.get(name, NOWHERE)[0]:
                arrive(point)
            written = write(self, name, data, **options)
            if name.startswith(".paramdelta/receipts/"):
                arrive("after a receipt")
            for point in WRITES.get(name, NOWHERE)[1]:
                arrive(point)
            return written

        def watched_delete(self, name):
            arrive("before the first delete")
            arrive("while an output is removed")
            arrive("amid the deletes")
            delete(self, name)
            arrive("after the first delete")

        def watched_identify(self, name):
            found = identify(self, name)
            if name == ".paramdelta/plan.json" and threading.current_thread() is not threading.main_thread():
                arrive("after the claim is asked for a shard")
            return found

        store.put, store.write, store.delete, store.identify = watched_put, watched_write, watched_delete, watched_identify

    return patch


def set_from(variable, *names):
    def patch(module):
        if variable in os.environ:
            for name in names:
                setattr(module, name, int(os.environ[variable]))

    return patch


AFTER_IMPORT = {
    "paramdelta_dist.storage.local": watch_store("LocalStore"),
    "paramdelta_dist.storage.obstore_store": watch_store("ObstoreStore"),
    "paramdelta_dist.storage.multipart": set_from("CHAOS_PART", "PART_SIZE"),
    "paramdelta_dist.planning.memory": set_from("CHAOS_TILE", "LOCAL_TILE", "REMOTE_TILE"),
}


class Patching(importlib.abc.MetaPathFinder):
    """Finds the modules of AFTER_IMPORT where Python would, and changes them when they have been executed."""

    def find_spec(self, name, path, target=None):
        if name not in AFTER_IMPORT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            AFTER_IMPORT[name](module)

        spec.loader.exec_module = exec_module
        return spec


if folder.is_dir():
    sys.meta_path.insert(0, Patching())
