"""Being one of several processes of a run, which begin, stop and end together.

What the processes tell each other is in the key-value store of JAX's coordination service, which
process 0 hosts. Each has a thread that writes there twice a second and reads what the others wrote:

* `beat/i`, a number that grows while process i lives. Where it stays the same for `SILENCE`, the
  process has ended or cannot be reached. No collective need fail for that: some wait for ever.
* `end/i`, why process i ends before the others; nothing where it was asked to stop.
* `stop/i`, that process i was asked to stop, and `at/i`, how far it was when it had heard of that.

A process that others have left ends at once, with one line and the exit code `LEFT`. No state is
lost by that but the steps since the last checkpoint.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # as orbax does: JAX has no other way to the key-value store

from alexnet_jax.errors import InputError
from alexnet_jax.host.signals import Stop, StopRequest

LEFT = 3  # the exit code of a process that another one has left
TICK = 0.5  # seconds between two looks at the others
SILENCE = 24  # ticks: 12 s, for a machine that swaps may hold up a thread of Python
# Seconds after which JAX's own service, which needs no Python, gives a process up and aborts the
# others. It counts from a sign of life that may be half as old: so it comes second by 2 s.
UNREACHABLE = 28
_ROOT = "alexnet_jax/"
_FOR_EVER = 1000 * 60 * 60 * 24 * 7  # ms; a process that waits for one that has ended, ends
T = TypeVar("T")


class _Processes:
    """A process, and what it knows of the others.

    Attributes:
      stop: the signals of this process alone, once the loops that poll them have begun.
    """

    def __init__(self) -> None:
        self.stop: StopRequest | None = None
        self._client: Any = distributed.global_state.client
        self._me, self._number = jax.process_index(), jax.process_count()
        self._asked, self._met = itertools.count(), itertools.count()
        self._polling = threading.Lock()
        self._polls, self._stop_at = 0, float("inf")
        self._heard = time.monotonic()
        self._silent = dict.fromkeys(set(range(self._number)) - {self._me}, 0)
        self._leaving = threading.Event()
        self._ending = threading.Lock()
        self._aborting = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        # JAX aborts a process that loses process 0, and asks nobody. abort(3) calls this first.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)

    def _say(self, what: str, value: str) -> None:
        self._client.key_value_set(f"{_ROOT}{what}/{self._me}", value, allow_overwrite=True)

    def _watch(self) -> None:
        beats: dict[str, str] = {}
        for beat in itertools.count():
            try:
                if not self._aborting:
                    self._say("beat", str(beat))
                if self.stop is not None and self.stop.requested:
                    self._say("stop", "")
                said = dict(self._client.key_value_dir_get(_ROOT))
                self._heard = time.monotonic()
                for other in self._silent:
                    if (reason := said.get(f"{_ROOT}end/{other}")) is not None:
                        self._end(other, reason)
                    key = f"{_ROOT}beat/{other}"
                    same = beats.get(key) == said.get(key)
                    self._silent[other] = self._silent[other] + 1 if same else 0
                    if self._silent[other] >= SILENCE:
                        self._end(other)
                beats = said
                stops = any(key.startswith(f"{_ROOT}stop/") for key in said)
                if stops and self._stop_at == float("inf"):
                    self._agree()
            except jax.errors.JaxRuntimeError:
                self._end(0)
            if self._leaving.wait(TICK):
                return

    def _agree(self) -> None:
        """Set the poll at which all processes stop: the first that none has come to yet."""
        with self._polling:  # so nobody moves on until all have said how far they are
            self._say("at", str(self._polls))
            polls = []
            for each in range(self._number):
                try:
                    wait = int(1000 * SILENCE * TICK)
                    at = self._client.blocking_key_value_get(f"{_ROOT}at/{each}", wait)
                except jax.errors.JaxRuntimeError:
                    self._end(each)
                    return
                polls.append(int(at))
            self._stop_at = max(polls) + 1

    def poll(self) -> bool:
        """Return whether all processes stop here."""
        if self._aborting:
            self._until_one_is_silent()  # and go no further
        with self._polling:
            self._polls += 1
            return self._polls >= self._stop_at

    def _end(self, other: int, reason: str | None = None) -> None:
        """End this process because `other` has ended; return where this one is about to end."""
        if self._leaving.is_set():
            return
        self._ending.acquire()  # for good: who comes second has nothing to add
        who = f"process {other} of {self._number}"
        if reason == "":
            line, code = f"stopped, as {who} was asked to; the same command continues", 0
        else:
            why = f" ({reason})" if reason else ""
            line, code = f"error: {who} has ended{why}; start all of them again: ", LEFT
            line += "the same command continues"
        # Not by Python's stream, whose lock may be held by a thread that waits for ever.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, ("\n" * os.isatty(2) + line + "\n").encode())
        os._exit(code)

    def _aborted(self, _: int) -> None:
        """End with a line where JAX or gloo aborts for the loss of another; else let it abort."""
        lost = [other for other, ticks in self._silent.items() if ticks > SILENCE / 2]
        deaf = time.monotonic() - self._heard > TICK * SILENCE / 2
        if self._me != 0 and (deaf or not _listens(distributed.global_state.coordinator_address)):
            lost = [0]
        if lost:
            self._end(lost[0])
        # Gloo may abort at once, where ranks of this process disagree on what failed.
        self._aborting = True
        self._until_one_is_silent()

    def _until_one_is_silent(self) -> None:
        """Give the watching thread the time to end the process where another has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join(TICK * (SILENCE + 10))

    def from_first(self, value: T) -> T:
        """Return what process 0 gives as `value`, which is JSON."""
        key = f"{_ROOT.rstrip('/')}_first/{next(self._asked)}"
        if self._me == 0:
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._client.blocking_key_value_get(key, _FOR_EVER))

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process ends of `error`, unless one of them is the reason."""
        if _of_a_collective(error):
            self._until_one_is_silent()
        self._leaving.set()
        asked = isinstance(error, KeyboardInterrupt)
        lines = str(error).splitlines() or [""]
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._say("end", "" if asked else f"{type(error).__name__}: {lines[0]}"[:300])
            if self._me == 0:
                time.sleep(4 * TICK)  # its end would take the message with it

    def meet(self) -> None:
        """Return when all processes have called this."""
        if self._aborting:
            self._until_one_is_silent()
        self._client.wait_at_barrier(f"{_ROOT}{next(self._met)}", _FOR_EVER)

    def part(self) -> None:
        """Wait until all have done their work."""
        self.meet()
        self._leaving.set()
        self._thread.join()


class _StopTogether:
    """A StopRequest of all processes: `requested` becomes true for all at the same poll.

    Reading `requested` is a poll. All processes poll in the same places, and are at most one
    collective apart.
    """

    def __init__(self, processes: _Processes) -> None:
        self._processes = processes

    @property
    def requested(self) -> bool:
        return self._processes.poll()


_here: _Processes | None = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes of a run as JAX finds them: SLURM, Open MPI, Kubernetes, Cloud TPU.

    In this context the process ends, with a line and the exit code LEFT, within 30 s of the end of
    any other; an exception that leaves it ends the others in the same way.

    Raises:
      InputError: JAX finds no cluster, or not all of its processes came within 5 minutes.
    """
    global _here
    _initialize()
    _here = _Processes()
    try:
        yield
        _here.part()
    except BaseException as error:
        _here.fail(error)
        atexit.register(os._exit, 1)  # of an error nobody expects; JAX would wait for the others
        raise


def _initialize() -> None:
    # JAX's own service for stops takes SIGTERM away from Python and does not know SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=UNREACHABLE)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: JAX finds no cluster to join ({' '.join(str(error).split())[:200]})"
        ) from error


def together(stop: StopRequest) -> Stop:
    """Return `stop`, or where this process is one of several what stops them all at one place."""
    if _here is None:
        return stop
    _here.stop = stop
    return _StopTogether(_here)


def from_first(value: T) -> T:
    """Return the `value` of process 0, which is JSON; all processes call this in the same order."""
    return value if _here is None else _here.from_first(value)


def meet() -> None:
    """Return when all processes have called this, however long one takes.

    To be called before the first collective, for which gloo waits no longer than 30 s.
    """
    if _here is not None:
        _here.meet()


def _of_a_collective(error: BaseException | None) -> bool:
    """Return whether JAX raised `error`, or what it was raised from."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _listens(address: str | None) -> bool:
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True
