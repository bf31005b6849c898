"""One shard of a prepared data set: encodes pictures, writes their records, sums their pixels.

A shard depends on nothing but its own pictures. Shards may be made in any order, by any number
of threads or machines, and their sums merged to the same bits.
"""

import collections
import concurrent.futures
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from alexnet_jax.errors import InputError
from alexnet_jax.pictures import load_image
from alexnet_jax.sources import Example

# JPEG does not compress further and raw pictures are for speed; groups of 1 give random access.
RECORD_OPTIONS = "group_size:1,uncompressed"
MAX_UNDECODABLE = 0.01  # share of all pictures that on_error='skip' may leave out
SKIP_REMEDY = "repair or remove it, or leave such files out with --config.dataset.on_error=skip"
_UNDER_WAY = 64  # pictures being decoded at a time: bounds the memory


@dataclasses.dataclass
class PixelSums:
    """Integer sums over uint8 pictures, from which mean and covariance follow exactly.

    Integers lose nothing, so there is no cancellation to fear in one pass, and parts merge by
    addition in any order to the same bits. int64 holds 2e9 pictures of 256 x 256.

    Attributes:
      pixels: uint64 (S, S, 3), sum over pictures.
      products: int64 (3, 3), sum of the outer products of the RGB of all pixels.
      count: number of pictures.
    """

    pixels: np.ndarray
    products: np.ndarray
    count: int = 0

    @classmethod
    def zeros(cls, size: int) -> "PixelSums":
        """Sums over no pictures of size x size."""
        return cls(np.zeros((size, size, 3), np.uint64), np.zeros((3, 3), np.int64))

    def add(self, image: np.ndarray) -> None:
        """Counts in one picture, uint8 (S, S, 3)."""
        self.pixels += image
        flat = image.reshape(-1, 3).astype(np.float64)  # sums stay below 2**53: exact
        self.products += (flat.T @ flat).astype(np.int64)
        self.count += 1

    def merge(self, other: "PixelSums") -> None:
        """Counts in all pictures of `other`."""
        self.pixels += other.pixels
        self.products += other.products
        self.count += other.count

    def mean_image(self) -> np.ndarray:
        """float32 (S, S, 3)."""
        return (self.pixels / self.count).astype(np.float32)

    def covariance(self) -> np.ndarray:
        """float64 (3, 3): population covariance of RGB over all pixels, 0..255 scale."""
        number = self.count * self.pixels[..., 0].size
        sums = self.pixels.sum((0, 1)).astype(object)  # Python's integers: no overflow below
        scatter = number * self.products.astype(object) - np.outer(sums, sums)
        return (scatter / number**2).astype(np.float64)

    def principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (3,) ascending and eigenvectors (3, 3), columns, of the covariance.

        The largest component of each vector is positive, since LAPACK leaves the sign open.
        """
        values, vectors = np.linalg.eigh(self.covariance())
        largest = np.abs(vectors).argmax(axis=0)
        return np.maximum(values, 0.0), vectors * np.sign(vectors[largest, range(3)])


@dataclasses.dataclass
class Shard:
    """What one shard holds; enough to merge shards without reading them again.

    Attributes:
      path: its file.
      sums: over its pictures, before coding.
      counts: int64 (classes,), pictures per class.
      num_bytes: of its serialised examples.
      undecodable: one line for each picture left out.
    """

    path: pathlib.Path
    sums: PixelSums
    counts: np.ndarray
    num_bytes: int = 0
    undecodable: list[str] = dataclasses.field(default_factory=list)


class Encoded(NamedTuple):
    """One example as it is stored, and its pixels, uint8 (S, S, 3), before coding."""

    pixels: np.ndarray
    label: int
    record: bytes


def encode(
    example: Example,
    dataset: ml_collections.ConfigDict,
    features: tfds.features.FeaturesDict,
    num_classes: int,
) -> Encoded | InputError:
    """The example ready to be written, or, with on_error='skip', why it cannot be decoded.

    Runs in a thread: Pillow releases the GIL while it decodes, resizes and encodes.

    Raises:
      InputError: it cannot be decoded (on_error='raise'), or its label is out of range.
    """
    try:
        pixels = load_image(example.picture, dataset.image_size, example.name)
    except InputError as error:
        if dataset.on_error == "raise":
            raise InputError(f"{error}; {SKIP_REMEDY}") from error
        return error
    if not 0 <= example.label < num_classes:
        raise InputError(
            f"{example.name} has label {example.label}: the data set has {num_classes} classes"
        )
    image: np.ndarray | bytes = pixels
    if dataset.encoding == "jpeg":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=dataset.jpeg_quality)
        image = file.getvalue()
    record = features.serialize_example({"image": image, "label": example.label})
    return Encoded(pixels, example.label, record)


def in_order(
    pool: concurrent.futures.ThreadPoolExecutor, function: Callable[[int], Any], keys: range
) -> Iterator[Any]:
    """function(key) for each key in order, a bounded number of them under way at a time."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for key in keys:
            pending.append(pool.submit(function, key))
            if len(pending) > _UNDER_WAY:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def write_shard(
    shard: Shard,
    examples: Iterator[Encoded | InputError],
    allowed: int,
    progress: Callable[[int], Any],
) -> None:
    """Writes the examples to the shard's file and counts them into `shard`.

    Raises:
      InputError: more than `allowed` are undecodable.
      OSError: the file cannot be written.
    """
    writer = _disk(ArrayRecordWriter, str(shard.path), RECORD_OPTIONS)
    try:
        for example in examples:
            progress(1)
            if isinstance(example, InputError):
                shard.undecodable.append(str(example))
                if len(shard.undecodable) > allowed:
                    raise InputError(
                        f"more than {MAX_UNDECODABLE:.0%} of the pictures are undecodable, which"
                        f" on_error=skip does not accept; the last: {example}"
                    )
                continue
            _disk(writer.write, example.record)
            shard.sums.add(example.pixels)
            shard.counts[example.label] += 1
            shard.num_bytes += len(example.record)
    finally:
        _disk(writer.close)  # writes are buffered: a full disk is often first noticed here
    reader = _disk(ArrayRecordReader, str(shard.path))
    readable = reader.num_records()
    reader.close()
    if readable != shard.sums.count:
        raise OSError(f"{shard.path.name}: {shard.sums.count} records written, {readable} readable")
    sync(shard.path)


def _disk(call: Callable[..., Any], *arguments: Any) -> Any:
    """What array_record says of a disk, a RuntimeError, as the OSError that it is."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def sync(path: pathlib.Path) -> None:
    """Waits until the file's or directory's contents are on the disk, or raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
