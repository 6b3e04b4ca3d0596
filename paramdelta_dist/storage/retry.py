"""Trying again: only what is marked as transient, with exponential backoff, full jitter and a bound. All its numbers.

A call to a store is repeated until `seconds` have passed since it began, so that it outlasts a store that is away for half a
minute. The bound is a time and not a count: where one layer that retries stands in another, as a request of s3fs in a read whose
body may break, the outer one sees the time used up and does not multiply it. With a last attempt that stalls, a call ends
`seconds` + `request` after it began at the latest; what a store says itself about when to ask again comes on top, up to
`longest_wait`. The layer is `persisting`, and obstore's own for the parts of
uploads, which only it can send again; s3fs and botocore do not retry. gcsfs, and obstore for gs and az, do some times more.

A shard whose call has failed like this is made again from its start, `attempts` times in all. That also mends what no request can
mend alone, such as an upload whose completion was not answered. A store that stays away ends a merge after some ten minutes.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from paramdelta_dist import stopping
from paramdelta_dist.errors import TransientStorageError

log = logging.getLogger(__name__)

T = TypeVar("T")


def full_jitter(longest: float) -> float:
    """Seconds to wait where `longest` may be waited at most: any number up to that, so that not all come back at once."""
    return random.uniform(0, longest)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The numbers by which something is tried again: seconds, where nothing else is said. They travel to workers with the settings of a
    store."""

    attempts: int = 5
    """Times that a shard is made before its error counts."""
    seconds: float = 90.0
    """After the beginning of a call to a store, in which it may still be tried again."""
    first_delay: float = 0.2
    """Half of what is waited at most before the second attempt; before each further one it is twice as much."""
    longest_delay: float = 10.0
    """The most that it grows to."""
    connect: float = 10.0
    """That a connection may take to come about."""
    stall: float = 60.0
    """That a connection may be silent. An upload is silent until its part has arrived, so 4 parts of 16 MiB set a lowest speed."""
    longest_wait: float = 900.0
    """That a call waits in all because the store says when to ask again; the windows of limits are some minutes long."""
    request: float = 120.0
    """That one request may take, with its body."""
    jitter: Callable[[float], float] = full_jitter
    """Chooses how long is waited, of at most so many seconds."""
    sleep: Callable[[stopping.Waiting, float], object] = stopping.Waiting.sleep
    """Waits between two attempts of a call to a store."""

    def retrying(self, call: Callable[[], T], *, what: str, sleep: Callable[[float], object] = time.sleep) -> T:
        """`call()`, repeated while it raises TransientStorageError, at most `attempts` times in all: for work that takes long.

        Any other exception, and the last transient one, comes out unchanged. `sleep` may return True to give up, as an Event's `wait`
        does.
        """
        return self._repeated(call, what, (self._delay(attempt) for attempt in range(1, self.attempts)), sleep)

    def persisting(self, call: Callable[[], T], *, what: str) -> T:
        """The same for one call to a store, which is repeated until `seconds` after the first. Raises Interrupted when the process
        is told to stop meanwhile."""
        answer = self._repeated(lambda: stopping.interruptible(call), what, self.pauses(), partial(self.sleep, stopping.Waiting()))
        stopping.alive()
        return answer

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further attempt of a call that begins now; the last attempt is made when the time is up."""
        end = time.monotonic() + self.seconds

        def until_end() -> Iterator[float]:
            attempt = 0
            while (left := end - time.monotonic()) > 0:
                attempt += 1
                yield min(self._delay(attempt), left)

        return until_end()

    def _delay(self, attempt: int) -> float:
        return self.jitter(min(self.longest_delay, self.first_delay * 2.0 ** min(attempt, 30)))

    def _repeated(self, call: Callable[[], T], what: str, delays: Iterator[float], sleep: Callable[[float], object]) -> T:
        waited = 0.0
        while True:
            try:
                return call()
            except TransientStorageError as error:
                stopping.away()
                if error.wait_seconds and waited + error.wait_seconds <= self.longest_wait:
                    pause = error.wait_seconds + self.jitter(1.0)
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


DEFAULT_RETRIES = RetryPolicy()
"""The policy where none is given, as to all users."""
