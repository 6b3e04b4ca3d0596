"""BLAKE3 of bytes as they go by: of all of them, and of ranges among them."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from paramdelta_dist.storage import Buffer


class StreamDigests:
    """Takes a file's bytes in order, while they are warm."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """`ranges` are bytes [start, stop) of the file, none empty, in order and without overlap."""
        self._ranges = ranges
        self._position = 0
        self._whole, self._part = blake3(), blake3()
        self.of_ranges: list[str] = []
        """In hex, of the ranges that are complete."""

    def update(self, chunk: Buffer) -> None:
        """Take the next bytes."""
        data = memoryview(chunk)
        self._whole.update(data)
        position, end = self._position, self._position + len(data)
        found, ranges = self.of_ranges, self._ranges
        while len(found) < len(ranges) and (current := ranges[len(found)])[0] < end:
            start, stop = current
            if position <= start and stop <= end:  # most are, where tensors are small, and there are many of them
                found.append(blake3(data[start - position : stop - position]).hexdigest())
                continue
            self._part.update(data[max(0, start - position) : stop - position])
            if stop > end:
                break
            found.append(self._part.hexdigest())
            self._part = blake3()
        self._position = end

    @property
    def whole(self) -> str:
        """Of all bytes so far, in hex."""
        return str(self._whole.hexdigest())
