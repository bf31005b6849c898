"""Batches of a prepared data set, each a pure function of (seed, step).

There is no iterator state to save: `train_batches(..., start_step=k)` starts at any step without
reading the batches before it. The global batch does not depend on the number of processes: process
p of P holds its rows [p * B/P, (p + 1) * B/P).
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.decoding import Batch, decoded
from alexnet_jax.errors import InputError


def train_batches(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Yield batches for steps start_step, start_step + 1, ... without end.

    Every epoch is another permutation of all examples. A batch may span two epochs, so that each
    example appears exactly once per epoch and none is dropped.

    Args:
      dataset: whose 'train' split is read.
      seed: 0 or more; orders of different seeds are independent.
      batch_size: B, global, a multiple of process_count.
      start_step: the step of the first batch.
      process_index: which process's share of each batch, of process_count.
      process_count: number of processes P.
      num_threads: number of threads that decode; by default one per core, if no process does.
      num_workers: number of processes that decode in their place; 0 for none. By default one per
        core with more than 4 cores and an accelerator, otherwise none.

    Yields:
      'image': uint8 (B/P, S, S, 3) and 'label': int32 (B/P,).

    Raises:
      InputError: B is not a multiple of P, both numbers are given, or while iterating: a record
        cannot be read, or a process that decodes cannot be started or has ended.
    """
    taken = train_records(
        dataset,
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    indices = (batch["record"] for batch in taken)
    rows = _local(batch_size, process_count)
    decoders = dataset.decoders(num_threads, num_workers)
    batches = decoded(dataset.records["train"], indices, rows, decoders)
    return ({"image": batch["image"], "label": batch["label"]} for batch in batches)


def train_records(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Like `train_batches`, but read nothing: 'record', int32 (B/P,), are indices in the split."""
    rows = _local(batch_size, process_count)
    number, of_epoch = dataset.num_train, _permutations(seed, dataset.num_train)
    for start in itertools.count(start_step * batch_size + process_index * rows, batch_size):
        record = np.zeros(rows, np.int32)
        taken = 0
        while taken < rows:  # what is left of an epoch, or of the batch
            epoch, first = divmod(start + taken, number)
            part = of_epoch(epoch)[first : first + rows - taken]
            record[taken : taken + len(part)] = part
            taken += len(part)
        yield {"record": record}


def eval_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "val",
    num_threads: int | None = None,
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Yield every example of a split once, in order: ceil(N / B) batches, the last zero-padded.

    Args:
      dataset: to read from.
      batch_size: B, over all processes.
      process_index: as for `train_batches`.
      process_count: number of processes P.
      split: 'train' or 'val'.
      num_threads: as for `train_batches`.
      num_workers: as for `train_batches`.

    Yields:
      Like `train_batches`, and 'mask': bool (B/P,), False for padding.

    Raises:
      InputError: like `train_batches`.
    """
    rows = _local(batch_size, process_count)
    records = dataset.records[split]
    number = len(records)
    first = process_index * rows
    starts = range(first, first + -(-number // batch_size) * batch_size, batch_size)
    positions = (np.arange(start, start + rows) for start in starts)
    indices = (np.where(of_batch < number, of_batch, -1) for of_batch in positions)
    return decoded(records, indices, rows, dataset.decoders(num_threads, num_workers))


def blank_batch(dataset: Dataset, batch_size: int, kind: str = "train") -> Batch:
    """Return a batch of zeros, shaped like those of `train_batches`, to compile with.

    With `kind` 'records' it is shaped like those of `train_records`, with 'eval' like those of
    `eval_batches`.
    """
    if kind == "records":
        return {"record": np.zeros(batch_size, np.int32)}
    shape = (batch_size, dataset.image_size, dataset.image_size, 3)
    batch: Batch = {"image": np.zeros(shape, np.uint8), "label": np.zeros(batch_size, np.int32)}
    return batch | ({"mask": np.zeros(batch_size, bool)} if kind == "eval" else {})


def _permutations(seed: int, number: int) -> Callable[[int], np.ndarray]:
    """Return a function from the epoch to its order of the records, (number,) int64.

    It uses RandomState because NumPy never changes its streams; those of a Generator may change.
    """

    @functools.lru_cache(maxsize=2)  # a batch spans two epochs, or more of a tiny data set
    def of_epoch(epoch: int) -> np.ndarray:
        # Hash both: with a sum, seed s in epoch e would have the order of seed s + 1 in e - 1.
        bits = np.random.MT19937(np.random.SeedSequence((seed, epoch)))
        return np.random.RandomState(bits).permutation(number)

    return of_epoch


def _local(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    return batch_size // process_count
