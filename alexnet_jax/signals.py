"""SIGINT and SIGTERM: the first asks a run to save and stop, a second one ends it at once.

A thread of its own reads them as they arrive, for Python's handlers wait until the main thread is
back from whatever it is at: a compilation takes a minute.
"""

import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Protocol, Self, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which the same signal once more is the same request: timeout(1) sends its own to the
# process and to the process group, and batch systems to the job and each of its steps.
SAME = 0.5
_LEFT_ALONE = "left alone by a stop"  # name of threads
T = TypeVar("T")


class Stop(Protocol):
    """What the loops poll: a StopRequest, or that of several processes (processes.together)."""

    @property
    def requested(self) -> bool:
        """Whether to stop here."""

    def unless_requested(self, function: Callable[[], T]) -> T | None:
        """Return `function()`, or None where it is to stop."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `requested` instead of ending the process.

    The loop finishes its step, saves and leaves. The other signal, or the same after SAME seconds,
    ends the process at once, with the exit code of a process that the signal has killed;
    checkpoints get their names when they are whole, so that one in the making is not taken for one.
    Outside the main thread, where Python does not give signals away, `requested` stays as it is.

    Attributes:
      requested: whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            # Python writes the number of each signal to the pipe as soon as the system delivers it.
            self._reads, self._writes = os.pipe()
            os.set_blocking(self._writes, False)
            threading.Thread(target=self._watch, args=(self._reads,), daemon=True).start()
            self._wakeup = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
            self._before = {n: signal.signal(n, lambda *_: None) for n in SIGNALS}
        return self

    def _watch(self, reads: int) -> None:
        first = 0, 0.0  # its number and time
        while number := os.read(reads, 1):
            if number[0] not in SIGNALS:
                continue
            now = time.monotonic()
            if not self.requested:
                first = number[0], now
                self.requested = True
            elif number[0] != first[0] or now - first[1] > SAME:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    os.write(2, b"stopped at once; the same command goes on from the last save\n")
                os._exit(128 + number[0])
        os.close(reads)

    def unless_requested(self, function: Callable[[], T]) -> T | None:
        """Return `function()`, or None as soon as a stop is requested.

        The function, which must change nothing that anybody else sees, is then left alone: leave
        the process by `leave`.
        """
        if self.requested:
            return None
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name=_LEFT_ALONE, daemon=True).start()
        while not self.requested:
            if concurrent.futures.wait([future], timeout=0.1).done:
                return future.result()
        return None

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writes)


def as_interrupts() -> None:
    """Make SIGTERM, like SIGINT, raise KeyboardInterrupt; the second signal kills the process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


def leave(code: int, at_once: bool = False) -> NoReturn:
    """End the process with `code`; `at_once`, for an error, or where a stop left a thread at work.

    To end in the usual way while such a thread is compiling would take what it needs from under it,
    and after an error a library's thread may wait for ever.
    A signal from now on changes nothing any more.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code or at_once or any(thread.name == _LEFT_ALONE for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
