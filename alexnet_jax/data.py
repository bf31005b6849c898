"""Batches of a prepared data set, each a pure function of (seed, step).

There is no iterator state to save: `train_batches(..., start_step=k)` begins at any step without
reading what came before. The global batch does not depend on the number of processes: process p
of P holds its rows [p * B/P, (p + 1) * B/P).
"""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator

import grain
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import FORMAT

Batch = dict[str, np.ndarray]


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
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    image_size: int
    num_train: int
    num_val: int
    mean_image: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def identity(self) -> str:
        """The hash of the pictures and of how they are stored, wherever they lie."""
        return self.path.name.rpartition("-")[2]


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens the directory that `prepare` returned.

    Raises:
      InputError: it is not a whole prepared set of this version's format.
    """
    path = pathlib.Path(path)
    try:
        statistics = json.loads((path / "statistics.json").read_text(encoding="utf-8"))
        if statistics["format"] != FORMAT:
            raise ValueError(f"format {statistics['format']}, this version reads {FORMAT}")
        for name, file in statistics["files"].items():
            if (path / name).stat().st_size != file["bytes"]:
                raise ValueError(f"{name} has not its {file['bytes']} bytes")
        dataset = Dataset(
            path=path,
            class_names=tuple(statistics["class_names"]),
            image_size=statistics["image_size"],
            num_train=sum(statistics["counts"]["train"]),
            num_val=sum(statistics["counts"]["val"]),
            mean_image=np.load(path / "mean_image.npy", allow_pickle=False),
            eigenvalues=np.array(statistics["eigenvalues"], np.float64),
            eigenvectors=np.array(statistics["eigenvectors"], np.float64),
        )
        for split, number in (("train", dataset.num_train), ("val", dataset.num_val)):
            if len(_Records(dataset, split)) != number:
                raise ValueError(f"its {split} split has not {number} records")
    except Exception as error:  # whatever json, numpy, protobuf and tfds say of what they find
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is no whole prepared data set ({reason}): remove it to have it made anew"
        ) from error
    return dataset


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
      num_threads: batches decoded at a time, one thread each; as many are kept ready.

    Yields:
      'image': uint8 (B/P, S, S, 3) and 'label': int32 (B/P,).

    Raises:
      InputError: B is not a multiple of P, or while iterating: a record cannot be read.
    """
    rows = _local(batch_size, process_count)
    records = _Records(dataset, "train")
    # seed() hashes: shuffle(seed=...) would give seed s in epoch e the order of seed s + 1 in
    # epoch e - 1, since Grain adds the epoch to it.
    order = grain.MapDataset.range(len(records)).seed(seed).shuffle().repeat()
    # drop_remainder drops nothing of an endless stream; without it Grain overflows at 1 row.
    shares = order.batch(rows, drop_remainder=True)
    first = start_step * process_count + process_index
    return _read(shares[first::process_count].map(records.batch), num_threads)


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
    records = _Records(dataset, split)

    def batch(step: int) -> Batch:
        start = step * batch_size + process_index * rows
        index = np.arange(start, start + rows)
        mask = index < len(records)
        part = records.batch(index[mask])
        filling = [(0, rows - mask.sum())]
        image = np.pad(part["image"], filling + [(0, 0)] * 3) if filling[0][1] else part["image"]
        return {"image": image, "label": np.pad(part["label"], filling), "mask": mask}

    steps = grain.MapDataset.range(-(-len(records) // batch_size))
    return _read(steps.map(batch), num_threads)


def blank_batch(dataset: Dataset, batch_size: int) -> Batch:
    """A training batch of zeros, to compile with."""
    shape = (batch_size, dataset.image_size, dataset.image_size, 3)
    return {"image": np.zeros(shape, np.uint8), "label": np.zeros(batch_size, np.int32)}


def _local(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    return batch_size // process_count


def _read(batches: grain.MapDataset, num_threads: int | None) -> Iterator[Batch]:
    threads = num_threads or min(8, len(os.sched_getaffinity(0)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


class _Records:
    """Random access to the decoded examples of one split."""

    def __init__(self, dataset: Dataset, split: str):
        builder = tfds.builder_from_directory(dataset.path)
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self._jpeg = isinstance(builder.info.features["image"], tfds.features.Image)
        self._size = dataset.image_size
        self._shard_lengths = builder.info.splits[split].shard_lengths
        self._files = [dataset.path / name for name in builder.info.splits[split].filenames]

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: np.ndarray) -> Batch:
        """The examples at these indices (B,), each decoded into its row of one new array."""
        shape = (self._size, self._size, 3)
        images = np.empty((len(indices), *shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(indices):
            try:
                example = self._source[index]
                labels[row] = example["label"]
                if self._jpeg:
                    with Image.open(io.BytesIO(example["image"])) as image:
                        images[row] = np.asarray(image)
                else:
                    images[row] = np.frombuffer(example["image"], np.uint8).reshape(shape)
            except Exception as error:  # array_record, protobuf and Pillow have their own each
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise InputError(
                    f"{self._name(int(index))} cannot be read ({reason}): remove the directory to"
                    " have it made anew"
                ) from error
        return {"image": images, "label": labels}

    def _name(self, index: int) -> str:
        shard = 0
        while index >= self._shard_lengths[shard]:
            index -= self._shard_lengths[shard]
            shard += 1
        return f"record {index} of {self._files[shard]}"
