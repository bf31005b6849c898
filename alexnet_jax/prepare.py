"""Makes the stored data set: squares of one size in ArrayRecord, their mean and colour statistics.

One path for every source: `pictures.load_image` makes the square, this module stores it. A file
with a picture's extension that cannot be decoded is refused by name, or with
`dataset.on_error='skip'` left out and counted, at most 1 % of all.

The finished directory is `data_dir/alexnet_jax/<source>-<size>px-<encoding>-<hash>`:

* `pictures-{train,val}.array_record-*`, `dataset_info.json`, `features.json`: a tfds data set,
  `tfds.builder_from_directory(directory).as_data_source('train')`; image and label in each;
* `mean_image.npy`: float32 (S, S, 3), 0..255, over the training pictures before JPEG coding;
* `statistics.json`: class names, pictures per class, mean colour, the eigenvalues (ascending)
  and eigenvectors (columns, R G B) of the covariance of all training pixels, 0..255 scale, what
  was skipped, what it was made from and with, and the size of every other file.

The hash covers the source's fingerprint and every setting that changes bytes, so a directory is
never stale. It is written as `<directory>.incomplete` and renamed at the very end: what has the
final name is whole. The same input gives the same bytes.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np
import PIL.features
import tensorflow_datasets as tfds
from tqdm import tqdm

from alexnet_jax.errors import InputError
from alexnet_jax.shards import (
    MAX_UNDECODABLE,
    SKIP_REMEDY,
    Encoded,
    PixelSums,
    Shard,
    encode,
    in_order,
    sync,
    write_shard,
)
from alexnet_jax.sources import Example, Source, open_source

FORMAT = 1  # of the prepared directory; raised when a reader of the old one would be wrong
SHARD_BYTES = 128 << 20  # aimed at; small enough to redo, large enough to read fast
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def prepare(dataset: ml_collections.ConfigDict) -> pathlib.Path:
    """The directory of the prepared set of `config.dataset`, made first if it is not there.

    Args:
      dataset: `config.dataset`, valid (config.validate).

    Raises:
      InputError: no such source, a picture that cannot be decoded, or a
        data_dir that cannot be written or is full. Nothing half-written stays.
    """
    source = open_source(dataset)
    identity = {
        "format": FORMAT,
        "source": source.fingerprint,
        "image_size": dataset.image_size,
        "encoding": dataset.encoding,
        "jpeg_quality": dataset.jpeg_quality if dataset.encoding == "jpeg" else None,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"[^\w.-]+", "_", source.name)
    root = pathlib.Path(dataset.data_dir).expanduser() / "alexnet_jax"
    directory = root / f"{name}-{dataset.image_size}px-{dataset.encoding}-{digest}"
    if not directory.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(directory):
                if not directory.is_dir():  # else another process has made it meanwhile
                    _make(source, dataset, identity, directory)
        except OSError as error:
            raise InputError(
                f"cannot write dataset.data_dir {dataset.data_dir} ({_reason(error)}):"
                " set another --config.dataset.data_dir"
            ) from error
    _accept(directory, dataset.on_error)
    return directory


def _accept(directory: pathlib.Path, on_error: str) -> None:
    """A set made with on_error='skip' that lacks pictures is not what 'raise' would have made."""
    try:
        undecodable = json.loads((directory / "statistics.json").read_text())["undecodable"]
    except (OSError, ValueError, KeyError):
        return  # data.open_dataset says what is wrong with it
    if undecodable and on_error == "raise":
        raise InputError(f"{undecodable[0]}; {SKIP_REMEDY}")


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """One process prepares, the others wait; the system drops the lock of a killed one."""
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process is preparing {directory}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(
    source: Source, dataset: ml_collections.ConfigDict, identity: dict, directory: pathlib.Path
) -> None:
    incomplete = directory.with_name(directory.name + ".incomplete")
    if incomplete.exists():
        shutil.rmtree(incomplete)  # of a killed process, since the lock is ours
    splits = source.open()
    total = sum(map(len, splits.values()))
    space = f"about {total * _picture_bytes(dataset) / 1e9:,.2f} GB"
    if dataset.encoding == "raw":  # its size is known, so hours need not pass before it is full
        _refuse_too_large(total * _picture_bytes(dataset), directory)
    numbers = ", ".join(f"{len(splits[split]):,} {split}" for split in splits)
    print(f"preparing {source.name} ({numbers} pictures, {space}) in {directory}", file=sys.stderr)
    try:
        incomplete.mkdir()
        _write(source, splits, dataset, identity, incomplete)
        sync(incomplete)
        incomplete.rename(directory)
        sync(directory.parent)
    except OSError as error:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise InputError(
            f"cannot write {directory} ({_reason(error)}): it needs {space}; make room there or"
            " set another --config.dataset.data_dir"
        ) from error
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:200]


def _picture_bytes(dataset: ml_collections.ConfigDict) -> int:
    """Bytes of a stored picture: exact for raw, for JPEG what photographs come to."""
    pixels = dataset.image_size**2
    return 3 * pixels if dataset.encoding == "raw" else pixels // 2


def _refuse_too_large(needed: int, directory: pathlib.Path) -> None:
    free = shutil.disk_usage(directory.parent).free
    if needed > free:
        raise InputError(
            f"cannot write {directory}: it needs {needed / 1e9:,.2f} GB, free are"
            f" {free / 1e9:,.2f} GB; make room there, set another --config.dataset.data_dir or"
            " --config.dataset.encoding=jpeg"
        )


def _write(
    source: Source,
    splits: dict[str, Sequence[Example]],
    dataset: ml_collections.ConfigDict,
    identity: dict,
    directory: pathlib.Path,
) -> None:
    """Fills the directory: shards one after the other, then the metadata of all of them."""
    size, classes = dataset.image_size, source.class_names
    tfds_features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg")
            if dataset.encoding == "jpeg"
            else tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=classes),
        }
    )

    def encode_at(examples: Sequence[Example], index: int) -> Encoded | InputError:
        return encode(examples[index], dataset, tfds_features, len(classes))

    allowed = int(MAX_UNDECODABLE * sum(map(len, splits.values())))
    undecodable: list[str] = []
    shards: dict[str, list[Shard]] = {}
    workers = len(os.sched_getaffinity(0))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for split, examples in splits.items():
            if not examples:
                raise InputError(f"{source.name} has no pictures in its {split} split")
            total = len(examples)
            number = math.ceil(total * _picture_bytes(dataset) / SHARD_BYTES)
            shards[split] = []
            patience = 0.1 if sys.stderr.isatty() else 10  # seconds: a log needs fewer lines
            with tqdm(
                total=total, desc=f"prepare {split}", unit="img", mininterval=patience
            ) as progress:
                for i in range(number):
                    path = directory / f"pictures-{split}.array_record-{i:05d}-of-{number:05d}"
                    share = range(i * total // number, (i + 1) * total // number)
                    results = in_order(pool, functools.partial(encode_at, examples), share)
                    shard = Shard(path, PixelSums.zeros(size), np.zeros(len(classes), np.int64))
                    write_shard(shard, results, allowed - len(undecodable), progress.update)
                    undecodable += shard.undecodable
                    shards[split].append(shard)
    _write_metadata(tfds_features, shards, directory)
    _write_statistics(source, identity, shards, undecodable, directory)
    print(
        f"prepared {source.name}; skipped {source.num_not_pictures} files that are no pictures,"
        f" {len(undecodable)} undecodable",
        file=sys.stderr,
    )


def _write_metadata(
    tfds_features: tfds.features.FeaturesDict,
    shards: dict[str, list[Shard]],
    directory: pathlib.Path,
) -> None:
    """`dataset_info.json`, `features.json`, `label.labels.txt`: what makes it a tfds data set."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template=_TEMPLATE,
        dataset_name="pictures",
        filetype_suffix="array_record",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds_features,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.sums.count for shard in parts],
                num_bytes=sum(shard.num_bytes for shard in parts),
                filename_template=template.replace(split=split),
            )
            for split, parts in shards.items()
        ],
        check_data=False,  # its check would read through TensorFlow
        description="Squares of one size with their labels, made by alexnet_jax.prepare.",
    )


def _write_statistics(
    source: Source,
    identity: dict,
    shards: dict[str, list[Shard]],
    undecodable: list[str],
    directory: pathlib.Path,
) -> None:
    """`mean_image.npy` and `statistics.json`."""
    sums = PixelSums.zeros(identity["image_size"])
    for shard in shards["train"]:
        sums.merge(shard.sums)
    values, vectors = sums.principal_axes()
    np.save(directory / "mean_image.npy", sums.mean_image(), allow_pickle=False)
    statistics = {
        "format": FORMAT,
        "made_from": identity,
        "made_with": {"pillow": PIL.__version__, "jpeg": PIL.features.version("libjpeg_turbo")},
        "image_size": identity["image_size"],
        "class_names": source.class_names,
        "counts": {
            split: np.sum([shard.counts for shard in parts], 0).tolist()
            for split, parts in shards.items()
        },
        "mean_colour": sums.mean_image().mean((0, 1), np.float64).tolist(),
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
        "not_pictures": source.num_not_pictures,
        "undecodable": undecodable,
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir())},
    }
    text = json.dumps(statistics, indent=1) + "\n"
    (directory / "statistics.json").write_text(text, encoding="utf-8")
    for file in directory.iterdir():
        sync(file)
