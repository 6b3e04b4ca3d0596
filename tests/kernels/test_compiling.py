"""What numba keeps on disk is a convenience: where it cannot be kept or read, functions are compiled again and nothing fails."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
CODE = """
import errno, os, sys
import numba.core.caching as caching
{before}
from tests.kernels.two_functions import four_times
assert four_times(21) == 84
"""
FULL = """
def full(self, path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
caching.IndexDataCacheFile._open_for_write = full
"""


def add(cache, before=""):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": ROOT}
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


@pytest.mark.parametrize("damaged", [".nbi", ".nbc"])
def test_a_damaged_cache_is_compiled_again(cache, tmp_path, damaged):
    """Of the two functions in it, one is damaged in each of the ways."""
    shutil.copytree(cache, tmp_path / "cache")
    empty, noise = (path for path in kept(tmp_path) if path.suffix == damaged)
    empty.write_bytes(b"")
    noise.write_bytes(b"\x93" + noise.read_bytes()[1:])
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
