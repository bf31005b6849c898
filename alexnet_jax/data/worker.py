"""What a worker process does: decode stored images into memory that its parent shares with it.

A worker has one thread of Python, so it never waits for Python's lock, and it imports neither jax
nor tensorflow_datasets: it starts in a fraction of a second. It ends when its parent ends, however
that happens, for then its connection is closed. It reports what it cannot read; the parent reads
that itself, and decides about it (records.py).
"""

import contextlib
import mmap
import multiprocessing.connection
import multiprocessing.reduction
import os
import signal
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.data.stored_images import StoredImages
from alexnet_jax.errors import InputError
from alexnet_jax.host import heap, threads

# Seconds for array_record to start its threads. Where it cannot, it waits for ever.
_START = 60


class Task(NamedTuple):
    """Some rows of a batch.

    Attributes:
      split: whose images these are.
      indices: (n,), which of them; zeros take the place of -1.
      file, size: of the shared file of the batch: its number, and its bytes. Where the worker has
        no file of that number, its descriptor follows.
      start: of these rows in the file, in bytes.
      unused: numbers of files that are of no use any more.
    """

    split: str
    indices: np.ndarray
    file: int
    size: int
    start: int
    unused: list[int]


class Answer(NamedTuple):
    """What came of a task.

    Attributes:
      labels: int32 (n,), 0 for -1.
      failed: the rows that could not be read.
    """

    labels: np.ndarray
    failed: list[int]


def work(connection_number: int, progress_number: int) -> None:
    """Decode for the parent at the other end of a connection, until it ends.

    Args:
      connection_number: descriptor of the connection. The parent sends each split's Stored and is
        answered None, or why this process cannot work. Then each Task is answered by an Answer.
      progress_number: descriptor of a shared file, where this process keeps the row that it is
        decoding as an int64.
    """
    heap.keep()  # a record of uint8 is large enough to be mapped again each time
    connection: Any = multiprocessing.connection.Connection(connection_number)
    progress = np.frombuffer(mmap.mmap(progress_number, mmap.PAGESIZE), np.int64)
    files: dict[int, np.ndarray] = {}
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent's end
        images = {split: StoredImages(stored) for split, stored in connection.recv().items()}
        connection.send(_unable(images["train"]))
        while True:
            task: Task = connection.recv()
            for number in task.unused:
                files.pop(number, None)
            if task.file not in files:
                files[task.file] = _mapped(connection, task.size)
            connection.send(_done(task, images[task.split], files[task.file], progress))


def _unable(images: StoredImages) -> str | None:
    """Return why array_record cannot be used here, or None; start its threads."""
    try:
        threads.for_array_record()
    except InputError as error:
        return str(error)
    signal.alarm(_START)  # ends this process, unless it is called off
    with contextlib.suppress(Exception):  # the file may be damaged, which is seen to later
        images.reader(0)
    signal.alarm(0)
    return None


def _mapped(connection: Any, size: int) -> np.ndarray:
    descriptor = multiprocessing.reduction.recv_handle(connection)
    try:
        return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    finally:
        os.close(descriptor)


def _done(task: Task, images: StoredImages, file: np.ndarray, progress: np.ndarray) -> Answer:
    number = len(task.indices)
    rows = file[task.start :][: number * np.prod(images.shape)].reshape(number, *images.shape)
    labels, failed = np.zeros(number, np.int32), []
    for row, index in enumerate(task.indices.tolist()):
        progress[0] = row
        if index < 0:
            rows[row] = 0
            continue
        try:
            labels[row] = images.read(index, rows[row])
        except Exception:  # damage, or a limit of this process
            failed.append(row)
    return Answer(labels, failed)
