"""Worker processes that decode, and the threads of this process that give them their tasks.

Threads wait for Python's lock: at 16 cores they decode half of what as many processes do. Each
thread here only sends a part of a batch to its worker and waits, without the lock, for the answer.
A worker writes the images to memory that it shares with this process, so that none is copied.
"""

import collections
import concurrent.futures
import contextlib
import mmap
import multiprocessing
import multiprocessing.reduction
import os
import pathlib
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alexnet_jax.data import buffers
from alexnet_jax.data.decoding import AHEAD, Batch, decode
from alexnet_jax.data.records import Records
from alexnet_jax.data.stored_images import Stored
from alexnet_jax.data.worker import Answer, Task
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.host import SIGNALS, cores

# With that many cores or fewer, threads scale as well: 4 decoded 0.996 times 4 single ones.
_FEW_CORES = 4
_PART = 64  # rows at least: a task costs this process about as much time as decoding an image
_SPARE = 16  # batches that the caller may keep at a time before decoding slows down
_PACKAGE = pathlib.Path(__file__).parents[1]
# The packages are there, but what is in their __init__ is not imported: it takes two seconds.
_CODE = """
import sys, types
for name, path in {packages}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from alexnet_jax.data.worker import work
work({connection}, {progress})
"""


def by_default() -> int:
    """Return how many worker processes are best here; 0 where threads are.

    An accelerator may wait for all that the cores can decode; a network that trains on a CPU needs
    little of it. Creates JAX's devices where there are many cores.
    """
    if cores() <= _FEW_CORES or not hasattr(os, "memfd_create"):
        return 0
    return 0 if jax.default_backend() == "cpu" else cores()


class Workers:
    """Worker processes for the splits of one data set; several iterators may use them.

    They start with `start`, or else with the first tasks, and end with this object or process.
    """

    def __init__(self, records: dict[str, Records], number: int, required: bool) -> None:
        """Take the splits and the number of processes; start none.

        Where they cannot be started, `required` says whether that is an InputError. Otherwise
        threads of this process decode, and one line on stderr says so.
        """
        self._records = records
        self._number = number
        self._required = required
        self._threads_decode, self._lock = False, threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(number, "decode")
        # As many as there are threads at most, so that a thread finds one idle, or may start one.
        # The one that has been idle for longest comes first, so that all learn of unused memory.
        self._idle: collections.deque[_Worker] = collections.deque()
        self._started = False
        self._processes: list[subprocess.Popen] = []
        weakref.finalize(self, _end, self._pool, self._processes)

    def start(self) -> None:
        """As `Decoders`."""
        if not self._started:
            self._started = True
            for _ in range(self._number):
                self._pool.submit(self._start_one)

    def plan(self, rows: int) -> tuple[int, int]:
        """As `Decoders`."""
        share = max(min(_PART, rows), -(-rows // self._number))
        parts = -(-rows // share)
        # Each worker has a task, and every second one the next: then none waits for this process.
        return share, max(AHEAD, -(-3 * self._number // (2 * parts)))

    def arrays(self, shape: tuple[int, ...], keep: int) -> Callable[[], np.ndarray]:
        """As `Decoders`."""
        self.start()
        others = buffers.RecycledArrays(shape, AHEAD)
        try:
            shared = buffers.SharedArrays(shape, keep, most=keep + _SPARE)
        except OSError as error:
            self._do_without(InputError(f"no memory can be shared with them ({error})"))
            return others.array

        def array() -> np.ndarray:
            found = shared.array()
            return others.array() if found is None else found

        return array

    def submit(
        self, records: Records, indices: np.ndarray, part: Batch
    ) -> concurrent.futures.Future:
        """As `Decoders`."""
        return self._pool.submit(self._decode, records, indices, part)

    def end(self) -> None:
        """As `Decoders`."""

    def _decode(self, records: Records, indices: np.ndarray, part: Batch) -> None:
        place = buffers.place(part["image"])
        worker = None if place is None else self._worker()
        if place is None or worker is None:
            decode(records, indices, part)
            return
        [split] = (name for name, each in self._records.items() if each is records)
        try:
            answer = worker.answer(split, indices, place)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise InputError(worker.death(records, indices)) from None
        except OSError as error:  # a limit of this process
            worker.kill()  # it must not write where another batch will be
            remedy = limit_met(error) or "the same command continues"
            raise InputError(
                f"a process that decodes cannot be reached ({error}): {remedy}"
            ) from error
        self._idle.append(worker)
        part["label"][:] = answer.labels
        part["mask"][:] = indices >= 0
        for row in answer.failed:  # this process decides about it, and counts
            part["label"][row] = records.read(int(indices[row]), part["image"][row])

    def _worker(self) -> "_Worker | None":
        """Return an idle worker, or start one; None where threads decode."""
        if not self._threads_decode:
            try:
                return self._idle.popleft()
            except IndexError:
                try:
                    return self._new()
                except InputError as error:
                    self._do_without(error)
        return None

    def _start_one(self) -> None:
        try:
            self._idle.append(self._new())
        except InputError as error:
            with contextlib.suppress(InputError):  # a task will meet it again, and tell its user
                self._do_without(error)

    def _new(self) -> "_Worker":
        return _Worker(
            {name: records.images.stored for name, records in self._records.items()},
            self._processes,
        )

    def _do_without(self, error: InputError) -> None:
        """Let threads decode and say why; raise InputError where processes are required."""
        message = f"{self._number} processes that decode cannot be started: {error}"
        if self._required:
            raise InputError(f"{message}; or take num_threads in place of num_workers") from error
        with self._lock:
            first, self._threads_decode = not self._threads_decode, True
        if first:
            print(f"warning: {message}; threads decode, on many cores more slowly", file=sys.stderr)


class _Worker:
    """A worker process, and what it knows."""

    def __init__(self, stored: dict[str, Stored], processes: list[subprocess.Popen]) -> None:
        """Start it, add it to `processes`, and wait until it is ready.

        Raises InputError if it cannot be started.
        """
        self._files: set[int] = set()
        self._connection: Any
        self._connection, theirs = multiprocessing.Pipe()
        try:
            with theirs:  # closed here, so that the connection ends with the worker
                descriptor = os.memfd_create("alexnet_jax-progress", os.MFD_CLOEXEC)
                try:
                    os.ftruncate(descriptor, mmap.PAGESIZE)
                    shared = mmap.mmap(descriptor, mmap.PAGESIZE)
                    self._process = _started(theirs.fileno(), descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise InputError(f"{error.strerror}: {limit_met(error) or 'make room'}") from error
        processes.append(self._process)
        self._progress = np.frombuffer(shared, np.int64)
        try:
            self._connection.send(stored)
            unable = self._connection.recv()
        except (EOFError, OSError):
            unable = f"one {self._end()}"
        if unable is not None:
            raise InputError(unable)

    def answer(self, split: str, indices: np.ndarray, place: buffers.Place) -> Answer:
        """Return what comes of a task; raise EOFError or OSError where the process ends."""
        unused = [file for file in self._files if not buffers.exists(file)]
        self._files.difference_update(unused)
        self._progress[0] = 0  # if it has ended meanwhile: the last task may have had more rows
        self._connection.send(Task(split, indices, place.file, place.size, place.start, unused))
        if place.file not in self._files:
            self._files.add(place.file)
            multiprocessing.reduction.send_handle(
                self._connection, place.descriptor, self._process.pid
            )
        return self._connection.recv()

    def kill(self) -> None:
        """End this process."""
        self._process.kill()

    def death(self, records: Records, indices: np.ndarray) -> str:
        """Return what is to be said of the end of this process while it had a task."""
        record = records.images.name(int(indices[self._progress[0]]))
        return f"the process that decoded {record} {self._end()}; the same command continues"

    def _end(self) -> str:
        """Return how the process has ended, for it has closed its connection."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "hangs"
        if code == -signal.SIGKILL:
            return "was killed, as the system does when it is out of memory"
        if code == -signal.SIGALRM:
            return "could not start its threads within a minute (ulimit -u, pids limit)"
        return f"ended with exit code {code}"


def _started(connection: int, progress: int) -> subprocess.Popen:
    # Not through multiprocessing: a fork would copy the locks of JAX's threads in any state, and a
    # spawn would run the caller's script again.
    code = _CODE.format(packages=_packages(), connection=connection, progress=progress)
    # Ctrl-C, and what asks all processes of a run to stop, is for the parent to handle. The worker
    # inherits that these signals are blocked, so that there is no moment at which one stops it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[connection, progress],
            stdin=subprocess.DEVNULL,
            process_group=0,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            # NumPy would start a thread per core, and would not use them.
            | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _packages() -> list[tuple[str, str]]:
    """Return names and directories of the packages whose modules a worker imports."""
    wings = [(f"alexnet_jax.{wing}", str(_PACKAGE / wing)) for wing in ("data", "host")]
    return [("alexnet_jax", str(_PACKAGE)), *wings]


def _end(pool: concurrent.futures.Executor, processes: list[subprocess.Popen]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
