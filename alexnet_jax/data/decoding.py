"""Batches that threads decode ahead of who asks for them.

The rows are decoded straight into the memory of the batch, which is used again when the caller has
let go of an earlier one (buffers.py). Two batches are under way or ready beside those that the
caller holds, whatever the size of the data set.
"""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator

import numpy as np

from alexnet_jax.data.buffers import RecycledArrays
from alexnet_jax.data.records import Records
from alexnet_jax.host import cores

Batch = dict[str, np.ndarray]

AHEAD = 2  # batches that are decoded while the caller is at work


def decoded(
    records: Records,
    size: int,
    places: Iterable[np.ndarray],
    rows: int,
    num_threads: int | None,
) -> Iterator[Batch]:
    """Batches with a mask: for each (rows,) of `places` the records there, filling for -1."""
    memory = RecycledArrays((rows, size, size, 3), keep=AHEAD + 2)
    threads = num_threads or cores()
    pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
    # One part of the batch for each thread: handing out smaller ones costs a twentieth of the rate,
    # and who is done early goes on with the next batch.
    share = -(-rows // threads)

    def begin(of_batch: np.ndarray) -> tuple[Batch, list[concurrent.futures.Future]]:
        batch = {
            "image": memory.array(),
            "label": np.zeros(rows, np.int32),
            "mask": np.zeros(rows, bool),
        }
        tasks = []
        for first in range(0, rows, share):
            part = {name: array[first : first + share] for name, array in batch.items()}
            tasks.append(pool.submit(_decode, records, of_batch[first : first + share], part))
        return batch, tasks

    def end(batch: Batch, tasks: list[concurrent.futures.Future]) -> Batch:
        for task in tasks:
            task.result()  # raises what the thread raised
        return batch

    under_way: collections.deque[tuple[Batch, list[concurrent.futures.Future]]]
    under_way = collections.deque()
    try:
        for of_batch in places:
            under_way.append(begin(of_batch))
            if len(under_way) > AHEAD:
                yield end(*under_way.popleft())
        while under_way:
            yield end(*under_way.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(records: Records, places: np.ndarray, part: Batch) -> None:
    """Fills some rows of a batch, those of `places`. Runs in a thread."""
    for row, (place, image) in enumerate(zip(places.tolist(), part["image"], strict=True)):
        if place < 0:
            image[:] = 0
        else:
            part["label"][row] = records.read(place, image)
            part["mask"][row] = True
