"""SIGINT and SIGTERM: the first asks a run to save and stop, a second one ends it immediately.

That is so while there are steps to be lost. Before the first step the system's default behaviour is
right. A thread reads the signals as they arrive, because Python's handlers wait until the main
thread returns from whatever it does.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Protocol, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds within which a repeated signal is the same request: timeout(1) sends its own to the
# process and to the process group, and batch systems to the job and each of its steps.
SAME = 0.5


class Stop(Protocol):
    """What the loops poll: a StopRequest, or that of several processes (processes.together)."""

    @property
    def requested(self) -> bool:
        """Whether to stop here."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `requested` instead of ending the process.

    The loop finishes its step, saves and returns. The other signal, or the same one after SAME
    seconds, ends the process immediately, with the exit code of a process that the signal has
    killed. Checkpoints get their names only when they are complete, so an unfinished one is never
    used. Outside the main thread, which alone can handle signals, `requested` stays False.

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
                    os.write(
                        2, b"stopped immediately; the same command resumes from the last save\n"
                    )
                os._exit(128 + number[0])
        os.close(reads)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writes)


def as_interrupts() -> None:
    """Make SIGTERM, like SIGINT, raise KeyboardInterrupt; the second signal kills the process.

    The exception's argument is the number of the signal.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Context of `as_interrupts`; outside the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    as_interrupts()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
