"""Trying again: only what is marked as transient, with exponential backoff, full jitter and a bound. All its numbers.

A call to a store is repeated until RETRY_SECONDS have passed since it began, so that it outlasts a store that is away for half a
minute. The bound is a time and not a count: where one layer that retries stands in another, as a request of s3fs in a read whose
body may break, the outer one sees the time used up and does not multiply it. With a last attempt that stalls, a call ends
RETRY_SECONDS + REQUEST_SECONDS after it began at the latest; what a store says itself about when to ask again comes on top, up to
LONGEST_WAIT_SECONDS. The layer is `persisting`, and obstore's own for the parts of
uploads, which only it can send again; s3fs and botocore do not retry. gcsfs, and obstore for gs and az, do some times more.

A shard whose call has failed like this is made again from its start, ATTEMPTS times in all. That also mends what no request can
mend alone, such as an upload whose completion was not answered. A store that stays away ends a merge after some ten minutes.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from paramdelta_dist import stopping
from paramdelta_dist.errors import TransientStorageError

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Times that a shard is made before its error counts."""
RETRY_SECONDS = 90.0
"""Seconds after its beginning in which a call to a store may still be tried again."""
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0
CONNECT_SECONDS = 10.0
"""Seconds that a connection may take to come about."""
STALL_SECONDS = 60.0
"""Seconds that a connection may be silent. An upload is silent until its part has arrived, so 4 parts of 16 MiB set a lowest speed."""
LONGEST_WAIT_SECONDS = 900.0
"""Seconds that a call waits in all because the store says when to ask again; the windows of limits are some minutes long."""
REQUEST_SECONDS = 120.0
"""Seconds that one request may take, with its body."""

T = TypeVar("T")


def retrying(call: Callable[[], T], *, what: str, sleep: Callable[[float], object] = time.sleep) -> T:
    """`call()`, repeated while it raises TransientStorageError, at most ATTEMPTS times in all: for work that takes long.

    Any other exception, and the last transient one, comes out unchanged. `sleep` may return True to give up, as an Event's `wait` does.
    """
    return _repeated(call, what, (_jittered(attempt) for attempt in range(1, ATTEMPTS)), sleep)


def persisting(call: Callable[[], T], *, what: str) -> T:
    """The same for one call to a store, which is repeated until RETRY_SECONDS after the first. Raises Interrupted when the process
    is told to stop meanwhile."""
    answer = _repeated(lambda: stopping.interruptible(call), what, pauses(), stopping.Waiting().sleep)
    stopping.alive()
    return answer


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt of a call that begins now; the last attempt is made when the time is up."""
    end = time.monotonic() + RETRY_SECONDS

    def until_end() -> Iterator[float]:
        attempt = 0
        while (left := end - time.monotonic()) > 0:
            attempt += 1
            yield min(_jittered(attempt), left)

    return until_end()


def _jittered(attempt: int) -> float:
    return random.uniform(0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(attempt, 30)))


def _repeated(call: Callable[[], T], what: str, delays: Iterator[float], sleep: Callable[[float], object]) -> T:
    waited = 0.0
    while True:
        try:
            return call()
        except TransientStorageError as error:
            stopping.away()
            if error.wait_seconds and waited + error.wait_seconds <= LONGEST_WAIT_SECONDS:
                pause = error.wait_seconds + random.uniform(0, 1)  # not all of those who wait at once
                waited += pause
                log.warning("%s is to be tried again in %.0f s, the store says (%s)", what, pause, error)
                if sleep(pause) is True:
                    raise
                continue
            delay = next(delays, None)
            if delay is None:
                raise
            log.warning("%s failed (%s); next attempt in %.1f s", what, error, delay)
            if sleep(delay) is True:
                raise
