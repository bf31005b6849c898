"""Several processes that make shards, each taking the next one when it has finished one.

Processes and not threads, which would wait for Python's lock on many cores. Each process holds at
most one image and the sums of one shard, so that memory does not grow with the data set. If a
worker dies, preparing ends with its reason; workers end by themselves if their parent dies.
"""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alexnet_jax.errors import InputError
from alexnet_jax.host import SIGNALS
from alexnet_jax.prepare.shards import Job, make_shard


def make_shards(
    jobs: Sequence[Job], processes: int, report: Callable[[int], Any]
) -> Iterator[list[str]]:
    """Make the shards; yield the skipped images of each as soon as it is finished.

    Args:
      jobs: the shards to make.
      processes: number of processes; with 1 this process makes them.
      report: called in this process with the number of images done since the last call.

    Raises:
      InputError, OSError: like make_shard; InputError also if a worker dies.
    """
    if processes == 1:
        for job in jobs:
            yield make_shard(job, report)
        return
    waiting = iter(jobs)
    busy: dict[Any, Job] = {}
    workers: dict[Any, subprocess.Popen] = {}

    def give(connection: Any, job: Job) -> None:
        busy[connection] = job
        try:
            connection.send(job)
        except OSError:
            raise InputError(_death(workers[connection], job)) from None

    try:
        for job in itertools.islice(waiting, processes):
            ours, theirs = multiprocessing.Pipe()
            workers[ours] = _start(theirs)
            theirs.close()  # so that the connection ends with the worker, which alone holds it
            give(ours, job)
        while busy:
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for connection in ready:
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    raise InputError(_death(workers[connection], busy[connection])) from None
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, int):
                    report(message)
                    continue
                del busy[connection]
                for job in itertools.islice(waiting, 1):
                    give(connection, job)
                yield message
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.wait()


def _start(connection: Any) -> subprocess.Popen:
    # Not through multiprocessing: a fork would copy the locks of JAX's threads in any state, and a
    # spawn would run the caller's script again, up to where it prepares.
    number = connection.fileno()
    return subprocess.Popen(
        [sys.executable, "-c", f"from alexnet_jax.prepare.workers import work; work({number})"],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C goes to the parent, which ends its workers
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _death(worker: subprocess.Popen, job: Job) -> str:
    try:
        code = worker.wait(timeout=10)  # it has closed its connection: it is ending
    except subprocess.TimeoutExpired:
        return f"the process that made {job.path.name} hangs; the same command continues"
    if code == -signal.SIGKILL:
        how = "was killed, as the system does when it is out of memory"
    else:
        how = f"ended with exit code {code}"
    return f"the process that made {job.path.name} {how}; the same command continues"


def work(number: int) -> None:
    """Make shards for the parent at the other end of descriptor `number`, until it ends."""
    for each in SIGNALS:  # the parent handles them and ends its workers
        signal.signal(each, signal.SIG_IGN)
    connection: Any = multiprocessing.connection.Connection(number)
    try:
        while True:
            job = connection.recv()
            try:
                connection.send(make_shard(job, connection.send))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                connection.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended
