"""Batches of a prepared data set, each a pure function of (seed, step).

There is no iterator state to save: `train_batches(..., start_step=k)` begins at any step without
reading what came before. The global batch does not depend on the number of processes: process p
of P holds its rows [p * B/P, (p + 1) * B/P).

Threads decode them ahead of the caller (decoding.py).
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data.decoding import Batch, decoded
from alexnet_jax.data.records import Records
from alexnet_jax.data.stored_format import FORMAT, statistics_sha256
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.host import regular, threads


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set, as `prepare.py` describes it.

    Attributes:
      path: its directory.
      class_names: label i is class_names[i].
      image_size: side S of the stored squares, in pixels.
      num_train, num_val: number of examples.
      mean_image: float32 (S, S, 3), 0..255, mean over the training pictures.
      eigenvalues: float64 (3,), ascending, of the RGB covariance of all training pixels.
      eigenvectors: float64 (3, 3), in columns.
      records: of 'train' and of 'val'.
      identity: of the images and of how they are stored, wherever they lie (`identity`).
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    image_size: int
    num_train: int
    num_val: int
    mean_image: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    records: dict[str, Records]
    identity: str

    @property
    def num_damaged(self) -> int:
        """How many records this process has found damaged so far and passed over."""
        return sum(len(records.damaged) for records in self.records.values())


def open_dataset(path: str | os.PathLike[str], on_error: str = "raise") -> Dataset:
    """Opens the directory that `prepare` returned.

    Args:
      path: the directory.
      on_error: what to do about damaged records: 'raise', or 'skip' up to 1 % (records.py).

    Raises:
      InputError: it is not a whole prepared set of this version's format. With on_error='skip'
        a damaged file of records is not refused here. Or this process may not start the threads
        that reading takes.
    """
    threads.for_array_record()  # now, and not at the first batch, before which a run compiles
    path = pathlib.Path(path)
    try:
        statistics = json.loads(regular(path / "statistics.json").read_text("utf-8"))
        if statistics["format"] != FORMAT:
            raise ValueError(f"format {statistics['format']}, this version reads {FORMAT}")
        # Sets that were made before there was this checksum have none.
        if statistics.get("sha256", statistics_sha256(statistics)) != statistics_sha256(statistics):
            raise ValueError("statistics.json has not its checksum")
        contents = {
            name: _checked(path / name, file["bytes"], file["sha256"])
            for name, file in statistics["files"].items()
            if "array_record" not in name
        }
        splits = tfds.builder_from_directory(path).info.splits
        records: dict[str, Records] = {}
        for split in ("train", "val"):
            files = [path / name for name in splits[split].filenames]
            for file, number in zip(files, splits[split].shard_lengths, strict=True):
                if on_error == "raise":
                    _check_size(file, statistics["files"][file.name]["bytes"], number)
            records[split] = Records(
                list(zip(files, splits[split].shard_lengths, strict=True)),
                statistics["image_size"],
                jpeg=statistics["made_from"]["encoding"] == "jpeg",
                on_error=on_error,
            )
            number = sum(statistics["counts"][split])
            if len(records[split]) != number:
                raise ValueError(f"its {split} split has not {number} records")
        return Dataset(
            path=path,
            class_names=tuple(statistics["class_names"]),
            image_size=statistics["image_size"],
            num_train=len(records["train"]),
            num_val=len(records["val"]),
            mean_image=np.load(io.BytesIO(contents["mean_image.npy"]), allow_pickle=False),
            eigenvalues=np.array(statistics["eigenvalues"], np.float64),
            eigenvectors=np.array(statistics["eigenvectors"], np.float64),
            records=records,
            identity=identity(path, statistics),
        )
    except Exception as error:  # whatever json, numpy, protobuf and tfds say of what they find
        reason = " ".join(str(error).split())[:200]
        if remedy := limit_met(error):
            raise InputError(f"{path} cannot be read ({reason}): {remedy}") from error
        raise InputError(
            f"{path} is no whole prepared data set ({reason}): remove it to have it made anew"
        ) from error


def identity(directory: pathlib.Path, statistics: dict) -> str:
    """Two hashes: of the source and the settings, as in the directory's name, and of the records.

    The first alone would not do: of a folder it covers names and sizes of the files only.
    """
    files = [[name, file["sha256"]] for name, file in sorted(statistics["files"].items())]
    records = json.dumps([file for file in files if "array_record" in file[0]])
    of_records = hashlib.sha256(records.encode()).hexdigest()[:10]
    return f"{directory.name.rpartition('-')[2]}-{of_records}"


def same_set(saved: str, now: str) -> bool:
    """Whether a run that saved `saved` has the set `now`; older runs saved its first hash only."""
    return saved in (now, now.partition("-")[0])


def _checked(file: pathlib.Path, number: int, sha256: str) -> bytes:
    """The content of a file that is read whole, if it is what was written."""
    content = regular(file).read_bytes()
    if len(content) != number:
        raise ValueError(f"{file.name} has not its {number} bytes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{file.name} has not its checksum")
    return content


def _check_size(file: pathlib.Path, number: int, records: int) -> None:
    """Refuses a truncated shard; flipped bytes are found when their record is read."""
    size = file.stat().st_size
    if size != number:
        raise ValueError(
            f"shard {file.name} has {size} of its {number} bytes, records 0 to {records - 1} are"
            " damaged; or pass over them with --config.dataset.on_error=skip"
        )


def train_batches(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Batches for steps start_step, start_step + 1, ... without end.

    Every epoch is another permutation of all examples. Batches run on over its border, so that
    each example appears exactly once an epoch and none is dropped.

    Args:
      dataset: whose 'train' split is read.
      seed: 0 or more; orders of different seeds are independent.
      batch_size: B, global, a multiple of process_count.
      start_step: the step of the first batch.
      process_index: which process's share of each batch, of process_count.
      process_count: number of processes P.
      num_threads: that decode; one for each core by default.

    Yields:
      'image': uint8 (B/P, S, S, 3) and 'label': int32 (B/P,).

    Raises:
      InputError: B is not a multiple of P, or while iterating: a record cannot be read.
    """
    taken = train_records(
        dataset,
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    places = (batch["record"] for batch in taken)
    rows = _local(batch_size, process_count)
    records = dataset.records["train"]
    batches = decoded(records, dataset.image_size, places, rows, num_threads)
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
    """As `train_batches`, but nothing is read: 'record', int32 (B/P,), are places in the split."""
    rows = _local(batch_size, process_count)
    number, of_epoch = dataset.num_train, _permutations(seed, dataset.num_train)
    for start in itertools.count(start_step * batch_size + process_index * rows, batch_size):
        record = np.zeros(rows, np.int32)
        taken = 0
        while taken < rows:  # what is left of an epoch, or of the batch
            epoch, place = divmod(start + taken, number)
            part = of_epoch(epoch)[place : place + rows - taken]
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
) -> Iterator[Batch]:
    """Every example of a split once, in order: ceil(N / B) batches, the last filled with zeros.

    Yields:
      As `train_batches`, and 'mask': bool (B/P,), False for what is filling.

    Raises:
      InputError: as `train_batches`.
    """
    rows = _local(batch_size, process_count)
    records = dataset.records[split]
    number = len(records)
    first = process_index * rows
    starts = range(first, first + -(-number // batch_size) * batch_size, batch_size)
    positions = (np.arange(start, start + rows) for start in starts)
    places = (np.where(of_batch < number, of_batch, -1) for of_batch in positions)
    return decoded(records, dataset.image_size, places, rows, num_threads)


def blank_batch(dataset: Dataset, batch_size: int, kind: str = "train") -> Batch:
    """A batch of zeros as of `train_batches`, to compile with.

    `kind` 'records' gives one as of `train_records`, 'eval' as of `eval_batches`.
    """
    if kind == "records":
        return {"record": np.zeros(batch_size, np.int32)}
    shape = (batch_size, dataset.image_size, dataset.image_size, 3)
    batch: Batch = {"image": np.zeros(shape, np.uint8), "label": np.zeros(batch_size, np.int32)}
    return batch | ({"mask": np.zeros(batch_size, bool)} if kind == "eval" else {})


def _permutations(seed: int, number: int) -> Callable[[int], np.ndarray]:
    """The order of the records in each epoch, (number,) int64.

    RandomState, for NumPy keeps its streams for ever, as it does not those of a Generator.
    """

    @functools.lru_cache(maxsize=2)  # a batch meets two epochs, or more of a tiny data set
    def of_epoch(epoch: int) -> np.ndarray:
        # A hash of both: with a sum, seed s in epoch e would have the order of seed s + 1 in e - 1.
        bits = np.random.MT19937(np.random.SeedSequence((seed, epoch)))
        return np.random.RandomState(bits).permutation(number)

    return of_epoch


def _local(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    return batch_size // process_count
