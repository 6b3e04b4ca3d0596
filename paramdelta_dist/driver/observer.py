"""Progress callbacks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey
    from paramdelta_dist.engine.executor import Counts
    from paramdelta_dist.output.receipts import Receipt
    from paramdelta_dist.planning import WorkerMemory
    from paramdelta_dist.shards.verify_file import FileVerdict


@dataclass(frozen=True)
class Details:
    """More about work that begins, as far as it is known of this kind of work."""

    shards: int | None = None
    files: int | None = None
    bytes_to_read: int | None = None
    memory: WorkerMemory | None = None

    def as_document(self) -> dict[str, Any]:
        """What is known, as plain values."""
        known = {"shards": self.shards, "files": self.files, "bytes_to_read": self.bytes_to_read}
        document: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
        return document if self.memory is None else {**document, "memory": self.memory.as_document()}


def uncounted() -> Counts | None:
    """The figures of work without an executor."""
    return None


class Observer(Protocol):
    """Receives the progress of a run. Calls come from several threads."""

    def started(self, what: str, total: int, *, done: int = 0, details: Details, counts: Callable[[], Counts | None] = uncounted) -> None:
        """Work of `total` bytes begins, of which `done` are in place already; `details` say more about it, and `counts` says
        at any time how many workers there are and how often something was tried again."""
        ...

    def advanced(self, size: int) -> None:
        """`size` more bytes are done; negative where a piece of work starts again, 0 where nothing is done and work goes on."""
        ...

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None:
        """A file is done."""
        ...


class NullObserver:
    """An observer that ignores everything."""

    def started(
        self, what: str, total: int, *, done: int = 0, details: Details, counts: Callable[[], Counts | None] = uncounted
    ) -> None: ...

    def advanced(self, size: int) -> None: ...

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None: ...
