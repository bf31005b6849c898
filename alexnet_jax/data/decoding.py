"""Batches that are decoded before they are needed.

Threads of this process, or worker processes (workers.py), decode the rows straight into the memory
of the batch, which is recycled from batches that the caller has released (buffers.py). How much
memory that takes does not depend on the size of the data set.
"""

import collections
import concurrent.futures
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from alexnet_jax.data.buffers import RecycledArrays
from alexnet_jax.data.records import Records

Batch = dict[str, np.ndarray]

AHEAD = 2  # batches that are decoded while the caller works, at least


class Decoders(Protocol):
    """What decodes parts of batches, several at a time."""

    def start(self) -> None:
        """Begin to get ready, if that takes time; return at once."""

    def plan(self, rows: int) -> tuple[int, int]:
        """Return the rows of a part of a batch of `rows`, and how many batches to keep under way.

        They are under way while the caller works.
        """

    def arrays(self, shape: tuple[int, ...], keep: int) -> Callable[[], np.ndarray]:
        """Return a source of memory for batches of images, which keeps up to `keep` unused."""

    def submit(
        self, records: Records, indices: np.ndarray, part: Batch
    ) -> concurrent.futures.Future:
        """Let a part of a batch be filled with the records at `indices`."""

    def end(self) -> None:
        """Take note that this user will submit no more."""


class Threads:
    """Threads of this process that decode, for one user."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool = concurrent.futures.ThreadPoolExecutor(number, "decode")

    def start(self) -> None:
        """As `Decoders`."""

    def plan(self, rows: int) -> tuple[int, int]:
        """As `Decoders`."""
        # One part per thread: smaller parts cost 5 % of the rate, and a thread that has finished
        # early takes a part of the next batch.
        return -(-rows // self._number), AHEAD

    def arrays(self, shape: tuple[int, ...], keep: int) -> Callable[[], np.ndarray]:
        """As `Decoders`."""
        return RecycledArrays(shape, keep).array

    def submit(
        self, records: Records, indices: np.ndarray, part: Batch
    ) -> concurrent.futures.Future:
        """As `Decoders`."""
        return self._pool.submit(decode, records, indices, part)

    def end(self) -> None:
        """As `Decoders`."""
        if not sys.is_finalizing():  # the interpreter has ended them then
            self._pool.shutdown(wait=False, cancel_futures=True)


def decoded(
    records: Records, indices: Iterable[np.ndarray], rows: int, decoders: Decoders
) -> Iterator[Batch]:
    """Yield a batch with a mask for each (rows,) of `indices`: these records, zeros for -1."""
    share, ahead = decoders.plan(rows)
    memory = decoders.arrays((rows, *records.images.shape), keep=ahead + 2)

    def begin(of_batch: np.ndarray) -> tuple[Batch, list[concurrent.futures.Future]]:
        batch = {
            "image": memory(),
            "label": np.zeros(rows, np.int32),
            "mask": np.zeros(rows, bool),
        }
        tasks = []
        for first in range(0, rows, share):
            part = {name: array[first : first + share] for name, array in batch.items()}
            tasks.append(decoders.submit(records, of_batch[first : first + share], part))
        return batch, tasks

    def end(batch: Batch, tasks: list[concurrent.futures.Future]) -> Batch:
        for task in tasks:
            task.result()  # raises what the thread raised
        return batch

    pending: collections.deque[tuple[Batch, list[concurrent.futures.Future]]]
    pending = collections.deque()
    try:
        for of_batch in indices:
            pending.append(begin(of_batch))
            if len(pending) > ahead:
                yield end(*pending.popleft())
        while pending:
            yield end(*pending.popleft())
    finally:
        for _, tasks in pending:
            for task in tasks:
                task.cancel()
        decoders.end()


def decode(records: Records, indices: np.ndarray, part: Batch) -> None:
    """Fill the rows of a part of a batch with the records at `indices`, in this thread."""
    for row, (index, image) in enumerate(zip(indices.tolist(), part["image"], strict=True)):
        if index < 0:
            image[:] = 0
        else:
            part["label"][row] = records.read(index, image)
            part["mask"][row] = True
