"""The resources of this machine that we may use: cores, memory and GPUs, as containers and schedulers limit them."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""As malloc.h numbers them. 32 MiB is the most that glibc takes for the second."""


def available_cores() -> int:
    """Cores this process may run on, cgroup quota included; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups():
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, int(quota) // int(period)))
    return max(1, cores)


def memory_limit() -> int:
    """Bytes this process may use at most: the machine's memory, or the cgroup's limit where that is less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroups():
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdigit() and int(text) > 0:
                limit = min(limit, int(text))
    return limit


def default_memory() -> int:
    """The memory budget when none is given: half of what the process may use."""
    return memory_limit() // 2


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes."""
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the parent too, where that was larger when it started us
    return usage if sys.platform == "darwin" else usage * 1024


def keep_freed_memory() -> None:
    """Tell the allocator of this process to use freed memory again, where it is glibc's, which else gives the body of every
    response back to the system and has the pages of the next one cleared. To be called before threads are started."""
    import ctypes

    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(option, value)


@cache
def torch_is_for_gpus() -> bool:
    """Whether the build of torch that is installed here is one for GPUs, as PyPI's for Linux is; torch is not imported for it."""
    found = find_spec("torch")
    libraries = Path(found.origin).parent / "lib" if found and found.origin else Path()
    return any((libraries / f"libtorch_{kind}.so").exists() for kind in ("cuda", "hip"))


def cuda_available() -> bool:
    """Whether torch finds a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def _cgroups() -> list[Path]:
    """Folders of this process's cgroups, v2 and v1, and of all groups above them."""
    root, folders = Path("/sys/fs/cgroup"), []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        top = root / controllers if controllers else root
        here = Path(str(top) + path)
        folders += [folder for folder in (here, *here.parents) if folder == top or top in folder.parents]
    return folders or [root]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
