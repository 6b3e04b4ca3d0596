"""Threads that a Ctrl-C does not have to wait for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from paramdelta_dist import stopping


class Threads(ThreadPoolExecutor):
    """A pool for the main thread. When that is interrupted, calls that wait for a store end, and what is left is waited for as long as
    something answers it; threads that hang in a library end by themselves later."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, KeyboardInterrupt):
            super().__exit__(kind, error, trace)
            return
        stopping.stop()
        ending = threading.Thread(target=self.shutdown, kwargs={"cancel_futures": True}, name="ending", daemon=True)
        ending.start()
        while ending.is_alive() and stopping.time_left():
            ending.join(0.05)
