"""Trying again: only what is marked as transient, with exponential backoff, full jitter and a bound."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from paramdelta_dist.errors import TransientStorageError

log = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0

T = TypeVar("T")


def retrying(call: Callable[[], T], *, what: str, sleep: Callable[[float], object] = time.sleep) -> T:
    """`call()`, repeated while it raises TransientStorageError, at most ATTEMPTS times in all.

    Any other exception, and the last transient one, comes out unchanged.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except TransientStorageError as error:
            if attempt == ATTEMPTS:
                raise
            delay = random.uniform(0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))
            log.warning("%s failed (%s); attempt %d of %d in %.1f s", what, error, attempt + 1, ATTEMPTS, delay)
            sleep(delay)
    raise AssertionError("unreachable")
