"""Being told to stop: whoever waits learns of it at once, and an orderly end has as long as something still answers.

What waits for a store that is away sleeps in `Waiting.sleep`, which a stop ends. What is under way then may end in good order,
take back an upload for instance, as long as there are signs of life (`alive`): answers of a store, mostly. Whoever ends the
process, or a worker, goes by `time_left`. A stop concerns what has begun before it; what begins later waits as ever, since a
program that uses this package may go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from paramdelta_dist.errors import Interrupted

GRACE_SECONDS = 1.2
"""How long after a sign of life an orderly end is still hoped for, and after a stop where there had been none of late,"""
HOPE_SECONDS = 3.0
"""or where there had been: a part of an upload that is under way may take so long."""
LATE_SECONDS = 1.0
"""How old a sign of life may be when the stop comes, to be one of late."""
LONGEST_SECONDS = 8.0
"""How long after a stop it may take in all; those who end containers and batch jobs kill after ten seconds or more."""

T = TypeVar("T")

_changed = threading.Condition()
_stops = 0
"""How often this process was told to stop."""
_stopped = _alive = 0.0
"""When it was last, and the last sign of life, on the monotonic clock."""
_hope = GRACE_SECONDS
"""Seconds from the stop to the first sign of life that are waited for."""
_farewell = "stopped"


def stop() -> None:
    """End every wait that has begun."""
    global _stops, _stopped, _hope
    with _changed:
        if not _stops or time_left() == 0:
            _stopped = time.monotonic()
            _hope = HOPE_SECONDS if _stopped - _alive < LATE_SECONDS else GRACE_SECONDS
        _stops += 1
        _changed.notify_all()


def requested() -> bool:
    """Whether this process was ever told to stop."""
    return _stops > 0


def alive(seconds: float = 0.0) -> None:
    """A sign of life: something has answered, or is known to need so many more seconds."""
    global _alive
    _alive = max(_alive, time.monotonic() + seconds)


def away() -> None:
    """The opposite: a store has failed to answer."""
    global _alive
    _alive = min(_alive, time.monotonic() - LATE_SECONDS)


def time_left() -> float:
    """Seconds until what was told to stop and has not ended is to be ended; 0 from then on."""
    until = _alive + GRACE_SECONDS if _alive > _stopped else _stopped + _hope
    return max(0.0, min(until, _stopped + LONGEST_SECONDS) - time.monotonic())


def say(text: str) -> None:
    """What is to be said if a stop comes from here on: what becomes of what has been begun, and how to go on."""
    global _farewell
    _farewell = text


def farewell() -> str:
    return _farewell


class Waiting:
    """The waits of one piece of work, which a stop since its beginning ends."""

    def __init__(self) -> None:
        self._stops = _stops

    @property
    def over(self) -> bool:
        """Whether a stop has come."""
        return _stops != self._stops

    def sleep(self, seconds: float) -> None:
        """Raises Interrupted when a stop comes, or has come."""
        with _changed:
            if _changed.wait_for(lambda: _stops != self._stops, timeout=seconds):
                raise Interrupted("stopped")


def interruptible(call: Callable[[], T]) -> T:
    """`call()`, from another thread where this is the main one, so that Ctrl-C can interrupt it.

    Python handles signals in the main thread, between two steps of the interpreter: none comes while a library waits for a
    network outside of it. A call that was interrupted goes on unheard until it ends by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    from concurrent.futures import Future  # by way of logging, for which the beginning of a program has no time

    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="call", daemon=True).start()
    return answer.result()
