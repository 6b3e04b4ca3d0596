"""The floor of a local merge: every input read into reused memory, as much written, nothing computed. Imports next to nothing.

    python -I -S benchmarks/floor.py OUTPUT THREADS BLOCK plain|preallocated|direct INPUT INPUT INPUT

The inputs have one size, which is the output's. Threads take every THREADS-th block: read it of each input, write it once.
"""

import mmap
import os
import sys
import threading

ALIGNMENT = 4096
"""What O_DIRECT wants of places and lengths."""


def main(output: str, threads: int, block: int, writing: str, inputs: list[str]) -> None:
    files = [os.open(path, os.O_RDONLY) for path in inputs]
    size = os.fstat(files[0]).st_size
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if writing == "direct" else 0)
    out = os.open(output, flags, 0o644)
    if writing != "plain":
        os.posix_fallocate(out, 0, size)

    def work(first: int) -> None:
        buffer = memoryview(mmap.mmap(-1, block))  # aligned to a page
        for start in range(first * block, size, threads * block):
            count = min(block, size - start)
            for file in files:
                if os.preadv(file, [buffer[:count]], start) != count:
                    raise OSError(f"{inputs}: short read at {start}")
            if writing == "direct":
                count = -(-count // ALIGNMENT) * ALIGNMENT  # the last block is too long and cut below
            if os.pwrite(out, buffer[:count], start) != count:
                raise OSError(f"{output}: short write at {start}")

    others = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    os.ftruncate(out, size)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
