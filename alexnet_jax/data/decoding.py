"""Batches that are ready before they are needed: decoded by threads, then copied to the devices.

Threads decode the rows straight into the memory of the batch, which is recycled from batches that
the caller has released (buffers.py). Besides the batches that the caller holds, at most two are in
memory, whatever the size of the data set.
"""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from alexnet_jax.data.buffers import RecycledArrays
from alexnet_jax.data.records import Records
from alexnet_jax.host import cores

Batch = dict[str, np.ndarray]

AHEAD = 2  # batches that are decoded while the caller works


def decoded(
    records: Records,
    size: int,
    indices: Iterable[np.ndarray],
    rows: int,
    num_threads: int | None,
) -> Iterator[Batch]:
    """Yield a batch with a mask for each (rows,) of `indices`: these records, zeros for -1."""
    memory = RecycledArrays((rows, size, size, 3), keep=AHEAD + 2)
    threads = num_threads or cores()
    pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
    # One part of the batch per thread: smaller parts cost 5 % of the rate, and a thread that has
    # finished early takes a part of the next batch.
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

    pending: collections.deque[tuple[Batch, list[concurrent.futures.Future]]]
    pending = collections.deque()
    try:
        for of_batch in indices:
            pending.append(begin(of_batch))
            if len(pending) > AHEAD:
                yield end(*pending.popleft())
        while pending:
            yield end(*pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(records: Records, indices: np.ndarray, part: Batch) -> None:
    """Fill the rows of a part of a batch with the records at `indices`. Runs in a thread."""
    for row, (index, image) in enumerate(zip(indices.tolist(), part["image"], strict=True)):
        if index < 0:
            image[:] = 0
        else:
            part["label"][row] = records.read(index, image)
            part["mask"][row] = True


def to_devices(
    batches: Iterable[dict[str, np.ndarray | jax.Array]],
    shardings: dict[str, jax.sharding.Sharding],
) -> Iterator[dict[str, jax.Array]]:
    """Yield each batch as arrays on the devices, while the next one is already being copied.

    So the host sends the next batch while the devices compute a step. A CPU device uses the memory
    of the batch in place.

    Args:
      batches: this process's rows, shaped as the compiled step takes them; arrays that are already
        on the devices stay as they are.
      shardings: of each array, over the devices of all processes.
    """
    ahead = None
    for batch in batches:
        on_devices = {
            name: rows
            if isinstance(rows, jax.Array)
            else jax.make_array_from_process_local_data(shardings[name], rows)
            for name, rows in batch.items()
        }
        del batch  # its memory can be recycled as soon as the devices have it
        if ahead is not None:
            yield ahead
        ahead = on_devices
    if ahead is not None:
        yield ahead
