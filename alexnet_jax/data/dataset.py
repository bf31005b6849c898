"""A prepared data set on the disk: what writer and reader must agree on, and how to open it."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data import workers
from alexnet_jax.data.decoding import Decoders, Threads
from alexnet_jax.data.records import Records
from alexnet_jax.data.stored_images import Stored
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.host import cores, regular, threads

FORMAT = 2  # of the prepared directory; raised when a reader of the old one would be wrong
# JPEG does not compress further and raw images are for speed; groups of 1 give random access.
RECORD_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set, as `prepare/stored_set.py` describes it.

    Attributes:
      path: its directory.
      class_names: label i is class_names[i].
      image_size: side S of the stored squares, in pixels.
      num_train, num_val: number of examples.
      mean_image: float32 (S, S, 3), 0..255, mean over the training images.
      eigenvalues: float64 (3,), ascending, of the RGB covariance of all training pixels.
      eigenvectors: float64 (3, 3), in columns.
      records: of 'train' and of 'val'.
      identity: of the images and of how they are stored, in whatever directory (`identity`).
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
    _workers: dict[int, workers.Workers] = dataclasses.field(default_factory=dict, repr=False)

    def decoders(self, num_threads: int | None = None, num_workers: int | None = None) -> Decoders:
        """Return what decodes images of this set for one iterator.

        Args:
          num_threads: of this process that decode; by default one per core, if no worker does.
          num_workers: number of worker processes, which all iterators share; 0 for threads. By
            default one per core where there are many cores and an accelerator, otherwise 0.

        Raises:
          InputError: a number is negative, or both are given.
        """
        for name, given in (("num_threads", num_threads), ("num_workers", num_workers)):
            if given is not None and given < 0:
                raise InputError(f"{name}={given} must not be negative")
        if num_threads and num_workers:
            raise InputError(
                f"num_threads={num_threads} and num_workers={num_workers}: give one of them"
            )
        number = num_workers
        if number is None:
            number = 0 if num_threads else workers.by_default()
        if not number:
            return Threads(num_threads or cores())
        if number not in self._workers:
            self._workers.clear()  # those in use end with their last user
            required = num_workers is not None
            self._workers[number] = workers.Workers(self.records, number, required)
        return self._workers[number]

    @property
    def num_damaged(self) -> int:
        """Return how many damaged records this process has found and skipped so far."""
        return sum(len(records.damaged) for records in self.records.values())


def open_dataset(path: str | os.PathLike[str], on_error: str = "raise") -> Dataset:
    """Open the directory that `prepare` returned.

    Args:
      path: the directory.
      on_error: what to do about damaged records: 'raise', or 'skip' up to 1 % (records.py).

    Raises:
      InputError: it is not a complete prepared set of this version's format. With on_error='skip'
        a damaged file of records is not refused here. Or this process may not start the threads
        that reading takes.
    """
    threads.for_array_record()  # now, and not at the first batch, before which a run compiles
    path = pathlib.Path(path)
    try:
        statistics = json.loads(regular(path / "statistics.json").read_text("utf-8"))
        if statistics["format"] != FORMAT:
            raise ValueError(f"format {statistics['format']}, this version reads {FORMAT}")
        # Sets of earlier versions do not have this checksum.
        if statistics.get("sha256", statistics_sha256(statistics)) != statistics_sha256(statistics):
            raise ValueError("statistics.json does not match its checksum")
        contents = {
            name: _checked(path / name, file["bytes"], file["sha256"])
            for name, file in statistics["files"].items()
            if "array_record" not in name
        }
        splits = tfds.builder_from_directory(path).info.splits
        records: dict[str, Records] = {}
        for split in ("train", "val"):
            files = [path / name for name in splits[split].filenames]
            shards = list(zip(files, splits[split].shard_lengths, strict=True))
            for file, number in shards if on_error == "raise" else ():
                _check_size(file, statistics["files"][file.name]["bytes"], number)
            stored = Stored(
                [(str(file), number) for file, number in shards],
                statistics["image_size"],
                jpeg=statistics["made_from"]["encoding"] == "jpeg",
            )
            records[split] = Records(stored, on_error)
            number = sum(statistics["counts"][split])
            if len(records[split]) != number:
                raise ValueError(f"its {split} split does not have {number} records")
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
    except Exception as error:  # whatever json, numpy, protobuf and tfds raise for what they read
        reason = " ".join(str(error).split())[:200]
        if remedy := limit_met(error):
            raise InputError(f"{path} cannot be read ({reason}): {remedy}") from error
        raise InputError(
            f"{path} is not a complete prepared data set ({reason}): remove it to rebuild it"
        ) from error


def identity(directory: pathlib.Path, statistics: dict) -> str:
    """Return two hashes: of source and settings, as in the directory's name, and of the records.

    The first is not enough: for a folder it covers only the names and sizes of the files.
    """
    files = [[name, file["sha256"]] for name, file in sorted(statistics["files"].items())]
    records = json.dumps([file for file in files if "array_record" in file[0]])
    of_records = hashlib.sha256(records.encode()).hexdigest()[:10]
    return f"{directory.name.rpartition('-')[2]}-{of_records}"


def same_set(saved: str, now: str) -> bool:
    """Return whether `now` is the set of a run that saved `saved`, in older runs its first hash."""
    return saved in (now, now.partition("-")[0])


def statistics_sha256(statistics: dict[str, Any]) -> str:
    """Return the SHA-256 of everything in `statistics.json` except this checksum."""
    others = {name: value for name, value in statistics.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _checked(file: pathlib.Path, number: int, sha256: str) -> bytes:
    """Return the content of a small file; raise ValueError if it is not what was written."""
    content = regular(file).read_bytes()
    if len(content) != number:
        raise ValueError(f"{file.name} does not have its {number} bytes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{file.name} does not match its checksum")
    return content


def _check_size(file: pathlib.Path, number: int, records: int) -> None:
    """Refuse a truncated shard; flipped bytes are found when their record is read."""
    size = file.stat().st_size
    if size != number:
        raise ValueError(
            f"shard {file.name} has {size} of its {number} bytes, records 0 to {records - 1} are"
            " damaged; or skip damaged records with --config.dataset.on_error=skip"
        )
