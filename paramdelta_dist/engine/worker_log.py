"""A worker's log: every line names the shard, the attempt at it and the node, and warnings are kept for the driver."""

from __future__ import annotations

import logging
from collections import deque

from paramdelta_dist.redaction import redact_process

KEPT = 8
"""Warnings kept until the driver asks for them; of more in between, the last."""


class WorkerLog(logging.Handler):
    """Writes all loggers of a process to stderr, which Ray keeps in a file for each worker."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node, self._doing = node, "idle"
        self._kept: deque[str] = deque(maxlen=KEPT)
        self._stream = logging.StreamHandler()
        self._stream.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(place)s: %(message)s"))

    def install(self) -> None:
        """Take the lines of this process: ours from INFO on, those of libraries from WARNING on; none with a secret."""
        redact_process()
        logging.getLogger().addHandler(self)
        logging.getLogger("paramdelta_dist").setLevel(logging.INFO)

    def doing(self, file: str = "", attempt: int = 0) -> None:
        """Say what the lines are about from here on; without a file, that the worker is idle."""
        self._doing = place(file, attempt, self._node) if file else f"idle on {self._node}"

    def emit(self, record: logging.LogRecord) -> None:
        record.place = self._doing
        self._stream.handle(record)
        if record.levelno >= logging.WARNING and record.name.startswith("paramdelta_dist"):
            self._kept.append(f"{self._doing}: {record.getMessage()}")

    def warnings(self) -> list[str]:
        """Those since the last time this was asked."""
        taken = []
        while self._kept:
            taken.append(self._kept.popleft())
        return taken


def place(file: str, attempt: int, node: str) -> str:
    """The name by which a log calls an attempt at a file."""
    return f"{file} (attempt {attempt} on {node})"
