"""One shard of a prepared data set: encodes images, writes their records, sums their pixels.

A shard depends only on its own images. Shards may be made in any order, by any number of processes
or machines, and their sums merge to the same bits. A finished shard is two files: the records, and
until all shards are merged, `<records>.done`, which says what they hold. Both get their names when
they are complete, `.done` last, so that a killed process never leaves what looks like a finished
shard.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import PIL.features
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import RECORD_OPTIONS
from alexnet_jax.errors import InputError
from alexnet_jax.host import sync, threads
from alexnet_jax.prepare.examples import Example
from alexnet_jax.prepare.images import load_image
from alexnet_jax.prepare.pixel_sums import PixelSums

MAX_UNDECODABLE = 0.01  # share of all images that on_error='skip' may skip
SKIP_REMEDY = "repair or remove it, or skip such files with --config.dataset.on_error=skip"
MADE_WITH = {"pillow": PIL.__version__, "jpeg": PIL.features.version("libjpeg_turbo")}


class Job(NamedTuple):
    """A shard to make; small enough to send to another process.

    Attributes:
      path: of its records.
      examples: its images, in order.
      dataset: `config.dataset`.
      num_classes: labels are less than this.
      allowed: number of undecodable images that on_error='skip' allows.
    """

    path: pathlib.Path
    examples: Sequence[Example]
    dataset: ml_collections.ConfigDict
    num_classes: int
    allowed: int


@dataclasses.dataclass
class Shard:
    """What a finished shard holds, so that shards are merged without reading their records.

    Attributes:
      path: of its records.
      sums: over its images, before encoding.
      counts: int64 (classes,), images per class.
      num_bytes: of its serialized examples.
      file_bytes: of the file of its records.
      sha256: of that file, hexadecimal.
      undecodable: one line per skipped image.
    """

    path: pathlib.Path
    sums: PixelSums
    counts: np.ndarray
    num_bytes: int = 0
    file_bytes: int = 0
    sha256: str = ""
    undecodable: list[str] = dataclasses.field(default_factory=list)


def features(
    dataset: ml_collections.ConfigDict, class_names: tuple[str, ...]
) -> tfds.features.FeaturesDict:
    """Return what a record holds, as tfds describes it."""
    size = dataset.image_size
    image = (
        tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg")
        if dataset.encoding == "jpeg"
        else tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes")
    )
    return tfds.features.FeaturesDict(
        {"image": image, "label": tfds.features.ClassLabel(names=class_names)}
    )


def make_shard(job: Job, report: Callable[[int], Any]) -> list[str]:
    """Write the shard's two files; call report(1) after each image.

    Returns:
      One line per image that was skipped as undecodable.

    Raises:
      InputError: an image cannot be decoded (on_error='raise'), or more of them than are allowed.
      OSError: the files cannot be written.
    """
    threads.for_array_record()
    size = job.dataset.image_size
    shard = Shard(job.path, PixelSums.zeros(size), np.zeros(job.num_classes, np.int64))
    with _named_when_complete(job.path) as scratch:
        writer = _disk(ArrayRecordWriter, str(scratch), RECORD_OPTIONS)
        try:
            for example in job.examples:
                if (pixels := _decode(example, job, shard)) is not None:
                    record = _serialized(pixels, example.label, job.dataset)
                    _disk(writer.write, record)
                    shard.sums.add(pixels)
                    shard.counts[example.label] += 1
                    shard.num_bytes += len(record)
                report(1)
        finally:
            _disk(writer.close)  # writes are buffered: a full disk is often noticed only here
        reader = _disk(ArrayRecordReader, str(scratch))
        readable = reader.num_records()
        reader.close()
        if readable != shard.sums.count:
            raise OSError(
                f"{job.path.name}: {shard.sums.count} records written, {readable} read back"
            )
        with scratch.open("rb") as file:
            shard.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard.file_bytes = scratch.stat().st_size
    _save(shard)
    return shard.undecodable


def _decode(example: Example, job: Job, shard: Shard) -> np.ndarray | None:
    """Return the example's pixels; None, and add to shard.undecodable, if it is to be skipped."""
    try:
        pixels = load_image(example.image, job.dataset.image_size, example.name)
    except InputError as error:
        if job.dataset.on_error == "raise":
            raise InputError(f"{error}; {SKIP_REMEDY}") from error
        shard.undecodable.append(str(error))
        refuse_too_many(shard.undecodable, job.allowed)
        return None
    if not 0 <= example.label < job.num_classes:
        raise InputError(
            f"{example.name} has label {example.label}: the data set has {job.num_classes} classes"
        )
    return pixels


def refuse_too_many(undecodable: list[str], allowed: int) -> None:
    """Raise InputError if more than `allowed` images are undecodable."""
    if len(undecodable) > allowed:
        raise InputError(
            f"more than {MAX_UNDECODABLE:.0%} of the images are undecodable, which"
            f" on_error=skip does not allow; the last: {undecodable[-1]}"
        )


def _serialized(pixels: np.ndarray, label: int, dataset: ml_collections.ConfigDict) -> bytes:
    """Return the record, as tfds serializes `features` except for the order of the fields.

    That order differs between processes unless `deterministic` is set.
    """
    image = pixels.tobytes()
    if dataset.encoding == "jpeg":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=dataset.jpeg_quality)
        image = file.getvalue()
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def done(path: pathlib.Path) -> pathlib.Path:
    """Return the file that says that the shard at `path` is finished, and what it holds."""
    return path.with_name(path.name + ".done")


def _save(shard: Shard) -> None:
    with _named_when_complete(done(shard.path)) as scratch, scratch.open("wb") as file:
        np.savez(
            file,
            pixels=shard.sums.pixels,
            products=shard.sums.products,
            count=shard.sums.count,
            counts=shard.counts,
            num_bytes=shard.num_bytes,
            file_bytes=shard.file_bytes,
            sha256=shard.sha256,
            undecodable=np.array(shard.undecodable, np.str_),
            made_with=repr(MADE_WITH),
            allow_pickle=False,
        )


def finished(path: pathlib.Path) -> Shard | None:
    """Return the shard at `path`; None if it is unfinished or was made with other decoders."""
    try:
        with np.load(done(path), allow_pickle=False) as saved:
            shard = Shard(
                path,
                PixelSums(saved["pixels"], saved["products"], int(saved["count"])),
                saved["counts"],
                int(saved["num_bytes"]),
                int(saved["file_bytes"]),
                str(saved["sha256"]),
                saved["undecodable"].tolist(),
            )
            same = str(saved["made_with"]) == repr(MADE_WITH)
        return shard if same and path.stat().st_size == shard.file_bytes else None
    except (OSError, ValueError, KeyError, EOFError):  # what NumPy raises for a damaged file
        return None


@contextlib.contextmanager
def _named_when_complete(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to write to, which is renamed to `path` once it is on the disk."""
    # Not a fixed name: another machine, or a worker about to end, may be writing the same shard.
    scratch = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _disk(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call array_record; raise OSError for what it raises for the disk, a RuntimeError."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(str(error)) from error
