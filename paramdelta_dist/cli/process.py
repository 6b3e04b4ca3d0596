"""The process around a command: its signals, its streams, and how it ends.

INT, TERM and HUP each stop by themselves. That SIGINT was ignored when the process began, as in every `command &` of a script, says
that the terminal's Ctrl-C is not for it; who sends a signal to this very process means it. Only HUP stays ignored where it was,
which is all that `nohup` asks for. The first signal is a KeyboardInterrupt in the main thread, so that everything is left in good
order. Python delivers it only when that thread comes back from a library, so a thread of its own hears of signals too, wakes
whoever waits, and ends the process when nothing gives a sign of life any more, or when a second signal comes.

What cannot be told is no error: a reader that went away, a stream that was closed, a full disk under a log. A merge goes on.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from paramdelta_dist import stopping
from paramdelta_dist.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SECONDS = 0.5
"""Signals so close together are one stop: Ctrl-C reaches a whole group of processes, and a launcher among them passes it on."""
WORDS_SECONDS = 1.0
"""How long last words may take; the stream they go to may be stuck."""
SHOW_CURSOR = "\x1b[?25h"


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command line, and end the process with its exit code: that of the SystemExit it raises, or 130 when it is stopped.
    Other exceptions come out, and are bugs."""
    _open_streams()
    signals = _Signals()
    code = Interrupted.exit_code
    try:
        code = _exit_code(command)
        _flush()
        if not signals.stopped:
            signals.ended = code
    except BaseException:  # of a KeyboardInterrupt other code may have made something else
        if not signals.stopped:
            raise
    if signals.stopped:
        if code:
            _last_words()
            code = Interrupted.exit_code
        _flush()
        os._exit(code)  # threads may hang in calls that Python would wait for
    sys.exit(code)


def _exit_code(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


class _Signals:
    """Hears of signals, in whatever state the main thread is."""

    def __init__(self) -> None:
        self.stopped = self._interrupted = False
        self.ended: int | None = None
        """The exit code, once nothing is left to stop."""
        self._heard, told = os.pipe()
        os.set_blocking(told, False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupt)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # Ray starts its processes, and so a job's driver, with SIGINT blocked
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.ended is not None:
            os._exit(self.ended)
        if not self._interrupted:
            self.stopped = self._interrupted = True
            sys.unraisablehook = lambda _: None  # what breaks off now has nothing more to say
            threading.excepthook = lambda _: None
            stopping.stop()
            raise KeyboardInterrupt

    def _watch(self) -> None:
        began: float | None = None
        while began is None or stopping.time_left():
            ready, _, _ = select.select([self._heard], [], [], None if began is None else stopping.time_left())
            if ready and set(os.read(self._heard, 64)) & set(SIGNALS):
                if self.ended is not None:
                    os._exit(self.ended)
                if began is None:
                    began = time.monotonic()
                    self.stopped = True  # Ray has a handler of its own for a while
                    stopping.stop()
                elif time.monotonic() - began > SAME_SECONDS:
                    break
        _last_words()
        os._exit(Interrupted.exit_code)


_words: Callable[[str], object] = lambda text: sys.stderr.write(f"error: {text}\n")  # noqa: E731
_speaking, _spoken = threading.Lock(), threading.Event()


def speak_by(words: Callable[[str], object]) -> None:
    """Have `words` tell the last message of a process that is stopped. Meanwhile the main thread may be anywhere."""
    global _words
    _words = words


def _last_words() -> None:
    """Say, once, that this process was stopped, and what that means."""
    if _speaking.acquire(blocking=False):
        threading.Thread(target=_speak, name="words", daemon=True).start()
    _spoken.wait(WORDS_SECONDS)


def _speak() -> None:
    with suppress(Exception):
        if sys.stderr.isatty():
            sys.stderr.write(f"{SHOW_CURSOR}\n")
        _words(stopping.farewell())
        _flush()
    _spoken.set()


class Stream(io.FileIO):
    """Standard output or error, to which writing never fails."""

    lost: OSError | None = None
    """What first kept something from being written."""

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                self.lost = self.lost or error
                return memoryview(data).nbytes
            if written is not None:
                return written
            select.select([], [self], [])  # another program made the terminal non-blocking

    @property
    def unread(self) -> bool:
        """Whether the reader has gone away."""
        return self.lost is not None and self.lost.errno == errno.EPIPE


def standard_output() -> Stream | None:
    """The process's, with all flushed that was printed; None where something else stands in its place."""
    with suppress(ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, Stream) else None


def _open_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _close_gap(number)
        if number and (stream is None or isinstance(stream, io.TextIOWrapper)):
            setattr(sys, name, _tolerant(number, stream))


def _close_gap(number: int) -> None:
    """Open a stream that was closed, or the next file gets its number, and with it what libraries write there."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null == number:
            os.set_inheritable(null, True)
        else:
            os.dup2(null, number)
            os.close(null)


def _tolerant(number: int, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """For text that no terminal's encoding can keep from being told either."""
    return io.TextIOWrapper(
        io.BufferedWriter(Stream(number, "w", closefd=False)),
        encoding=old.encoding if old else "utf-8",
        errors="backslashreplace",
        line_buffering=old.line_buffering if old else True,
        write_through=old.write_through if old else False,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
