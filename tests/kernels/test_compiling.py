"""What numba keeps on disk is a convenience: where it cannot be kept or read, functions are compiled again and nothing fails."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import errno, os, sys
import numba.core.caching as caching
{before}
import numpy as np
from paramdelta_dist.kernels.sum_cpu import add_deltas
from paramdelta_dist.kernels.raw import RawElements
one, two, out = (np.full(8, n, np.float32) for n in (1, 2, 0))
add_deltas(RawElements(memoryview(out).cast("B"), "F32"), RawElements(memoryview(one).cast("B"), "F32"),
           [(RawElements(memoryview(two).cast("B"), "F32"), RawElements(memoryview(one).cast("B"), "F32"))], [1.0])
assert out.tolist() == [2.0] * 8, out
"""
FULL = """
def full(self, path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
caching.IndexDataCacheFile._open_for_write = full
"""


def add(cache, before=""):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", CODE.format(before=before)], env=environment, capture_output=True, text=True)


def kept(cache):
    return sorted(path for path in Path(cache).rglob("*") if path.suffix in (".nbi", ".nbc"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    assert add(cache).returncode == 0
    return cache


def test_what_was_compiled_is_kept(cache):
    before = {path: path.stat().st_mtime_ns for path in kept(cache)}
    assert before
    assert add(cache).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept(cache)} == before, "compiled again"


def test_a_full_disk_under_the_cache_costs_time_only(tmp_path):
    done = add(tmp_path, FULL)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path) == []


@pytest.mark.parametrize("damage", ["empty", "noise"])
def test_a_damaged_cache_is_compiled_again(cache, tmp_path, damage):
    shutil.copytree(cache, tmp_path / "cache")
    for path in kept(tmp_path):
        path.write_bytes(b"" if damage == "empty" else b"\x93" + path.read_bytes()[1:])
    done = add(tmp_path / "cache")
    assert done.returncode == 0, done.stderr


def test_a_cache_that_is_gone_or_may_not_be_written_to_costs_time_only(tmp_path):
    cache = tmp_path / "cache"
    cache.write_text("a file, in which there is no room for folders")
    done = add(cache)
    assert done.returncode == 0, done.stderr
    if os.geteuid():
        cache.unlink()
        cache.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        assert add(cache).returncode == 0
