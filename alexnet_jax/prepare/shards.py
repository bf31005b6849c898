"""One shard of a prepared data set: encodes pictures, writes their records, sums their pixels.

A shard depends on nothing but its own pictures. Shards may be made in any order, by any number of
processes or machines, and their sums merged to the same bits. A finished shard is two files: the
records, and beside them, until all are merged, `<records>.done`, which says what they hold. Both
get their names when they are whole, the second one last: a kill leaves nothing that could be taken
for a finished shard.
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

MAX_UNDECODABLE = 0.01  # share of all pictures that on_error='skip' may leave out
SKIP_REMEDY = "repair or remove it, or leave such files out with --config.dataset.on_error=skip"
MADE_WITH = {"pillow": PIL.__version__, "jpeg": PIL.features.version("libjpeg_turbo")}


class Job(NamedTuple):
    """A shard to be made; small enough to be sent to another process.

    Attributes:
      path: of its records.
      examples: its pictures, in order.
      dataset: `config.dataset`.
      num_classes: labels are below it.
      allowed: undecodable pictures that on_error='skip' accepts.
    """

    path: pathlib.Path
    examples: Sequence[Example]
    dataset: ml_collections.ConfigDict
    num_classes: int
    allowed: int


@dataclasses.dataclass
class Shard:
    """What a finished shard holds; enough to merge shards without reading their records.

    Attributes:
      path: of its records.
      sums: over its pictures, before coding.
      counts: int64 (classes,), pictures per class.
      num_bytes: of its serialised examples.
      file_bytes: of the file of its records.
      sha256: of that file, in hexadecimal.
      undecodable: one line for each picture left out.
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
    """What a record holds, in the words of tfds."""
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
    """Makes the shard's two files; calls report(1) after each picture.

    Returns:
      A line for each picture that was left out as undecodable.

    Raises:
      InputError: a picture cannot be decoded (on_error='raise'), or more of them than are allowed.
      OSError: the files cannot be written.
    """
    threads.for_array_record()
    size = job.dataset.image_size
    shard = Shard(job.path, PixelSums.zeros(size), np.zeros(job.num_classes, np.int64))
    with _named_when_whole(job.path) as scratch:
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
            _disk(writer.close)  # writes are buffered: a full disk is often first noticed here
        reader = _disk(ArrayRecordReader, str(scratch))
        readable = reader.num_records()
        reader.close()
        if readable != shard.sums.count:
            raise OSError(f"{job.path.name}: {shard.sums.count} records written, {readable} left")
        with scratch.open("rb") as file:
            shard.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard.file_bytes = scratch.stat().st_size
    _save(shard)
    return shard.undecodable


def _decode(example: Example, job: Job, shard: Shard) -> np.ndarray | None:
    """The example's pixels; None, and a line in shard.undecodable, where it is to be left out."""
    try:
        pixels = load_image(example.picture, job.dataset.image_size, example.name)
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
    """Raises InputError when more pictures than `allowed` are undecodable."""
    if len(undecodable) > allowed:
        raise InputError(
            f"more than {MAX_UNDECODABLE:.0%} of the pictures are undecodable, which"
            f" on_error=skip does not accept; the last: {undecodable[-1]}"
        )


def _serialized(pixels: np.ndarray, label: int, dataset: ml_collections.ConfigDict) -> bytes:
    """The record: what tfds's own serialising of `features` gives, but for the order of fields.

    That order is another one in each process, unless it is asked to be the same.
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
    """The file that says that the shard at `path` is finished, and what it holds."""
    return path.with_name(path.name + ".done")


def _save(shard: Shard) -> None:
    with _named_when_whole(done(shard.path)) as scratch, scratch.open("wb") as file:
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
    """The shard at `path`; None where it is still to be made, or by this machine's decoder anew."""
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
    except (OSError, ValueError, KeyError, EOFError):  # what NumPy says of what is no such file
        return None


@contextlib.contextmanager
def _named_when_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which becomes `path` once it is on the disk, unless an error comes."""
    # Not a fixed name: another machine, or an orphan that is to die soon, may write the same shard.
    scratch = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _disk(call: Callable[..., Any], *arguments: Any) -> Any:
    """What array_record says of a disk, a RuntimeError, as the OSError that it is."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(str(error)) from error
