"""What the process is told about its machine."""

import platform
import subprocess
import sys

import pytest

BODIES = """
import resource, threading
from paramdelta_dist.engine.machine import keep_freed_memory
if {keep}:
    keep_freed_memory()
def receive():
    for _ in range(20):
        [bytes([1]) * (16 << 20) for _ in range(4)]
thread = threading.Thread(target=receive)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_that_was_freed_is_used_again():
    assert new_memory(keep=True) * 4 < new_memory(keep=False)


def new_memory(*, keep: bool) -> int:
    """MiB of pages that a process had to be given, of 1280 that go by."""
    done = subprocess.run([sys.executable, "-c", BODIES.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)
