"""Progress callbacks of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey
    from paramdelta_dist.output.receipts import Receipt
    from paramdelta_dist.shards.verify_file import FileVerdict


class Observer(Protocol):
    """Receives the progress of a run. Calls come from several threads."""

    def started(
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None:
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
        self, what: str, total: int, *, done: int = 0, details: Mapping[str, Any], counts: Callable[[], Mapping[str, int]] = dict
    ) -> None: ...

    def advanced(self, size: int) -> None: ...

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None: ...
