"""The stored data set: squares of one size in ArrayRecord, with their mean and colour statistics.

It is made in the same way from every source: images.py makes the squares, shards.py stores them,
workers.py uses all cores, merge.py adds the metadata. A file with the extension of an image that
cannot be decoded is refused by name, or with `dataset.on_error='skip'` skipped and counted, at most
1 % of all.

The finished directory is `data_dir/alexnet_jax/<source>-<size>px-<encoding>-<hash>`:

* `pictures-{train,val}.array_record-*`, `dataset_info.json`, `features.json`: a tfds data set,
  `tfds.builder_from_directory(directory).as_data_source('train')` with image and label;
* `mean_image.npy`: float32 (S, S, 3), 0..255, over the training images before JPEG encoding;
* `statistics.json`: class names, images per class, mean colour, the eigenvalues (ascending) and
  eigenvectors (columns, R G B) of the covariance of all training pixels, 0..255 scale, what was
  skipped, source, settings and versions, a checksum of the training records, and size and SHA-256
  of every other file.

The hash covers the source's fingerprint and every setting that changes bytes, so a directory is
never that of another source. It is filled as `<directory>.incomplete` and renamed at the very end:
a directory with the final name is complete. After a kill, a full disk or a bad image the same call
continues from the finished shards. The same input gives the same bytes with any number of processes
and machines.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence

import ml_collections
from tqdm import tqdm

from alexnet_jax.data import FORMAT
from alexnet_jax.errors import InputError, limit_met, printable
from alexnet_jax.fields import expanded
from alexnet_jax.host import cores, interrupts, open_lock, regular, sync, threads
from alexnet_jax.prepare.examples import Contents, Source
from alexnet_jax.prepare.merge import merge
from alexnet_jax.prepare.shards import (
    MAX_UNDECODABLE,
    SKIP_REMEDY,
    Job,
    done,
    finished,
    refuse_too_many,
)
from alexnet_jax.prepare.sources import open_source
from alexnet_jax.prepare.workers import make_shards

SHARD_BYTES = 32 << 20  # approximately: little to redo, and enough shards for all cores
MAX_SHARDS = 256  # per split; each is an open file of the reader, and a usual limit is 1,024
IMAGES_PER_PROCESS = 2000  # fewer are done in the seconds that a process takes to start


def prepare(
    dataset: ml_collections.ConfigDict,
    share: str | None = None,
    num_classes: int | None = None,
) -> pathlib.Path:
    """Return the directory of the prepared set of `config.dataset`; make it if it does not exist.

    Args:
      dataset: `config.dataset`, valid (config.validate).
      share: 'i/n' with 0 <= i < n makes shards i, i + n, i + 2n, ... only, as one of n machines
        that share a data_dir, and returns the future directory. The same call without it makes
        the remaining shards and merges all.
      num_classes: of the network of the run, 0 where it will have as many as the source; one with
        another number of classes is refused before anything is made.

    Raises:
      InputError: the source does not exist, an image cannot be decoded, data_dir cannot be written
        or is full, or share is malformed. Only finished shards are kept, for the next call.
    """
    mine = _parse(share)
    source, identity, directory = _located(dataset)
    root = directory.parent
    if not directory.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(directory, fcntl.LOCK_SH if share else fcntl.LOCK_EX):
                if not directory.is_dir():  # else another process has just made it
                    with interrupts():
                        _make(source, dataset, identity, directory, mine, num_classes)
        except OSError as error:
            remedy = limit_met(error) or "set another --config.dataset.data_dir"
            raise InputError(
                f"cannot write dataset.data_dir {dataset.data_dir} ({_reason(error)}): {remedy}"
            ) from error
    if directory.is_dir():
        _accept(directory, dataset.on_error)
    return directory


def is_prepared(dataset: ml_collections.ConfigDict) -> bool:
    """Return whether the prepared set of `config.dataset` exists; write nothing.

    Raises InputError if its source does not exist.
    """
    _, _, directory = _located(dataset)
    return directory.is_dir()


def _located(dataset: ml_collections.ConfigDict) -> tuple[Source, dict, pathlib.Path]:
    """Return the source of `config.dataset`, and identity and directory of its prepared set."""
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
    root = expanded("config.dataset.data_dir", dataset.data_dir) / "alexnet_jax"
    directory = root / f"{name}-{dataset.image_size}px-{dataset.encoding}-{digest}"
    return source, identity, directory


def check_classes(num_classes: int, class_names: Sequence[str], name: str) -> None:
    """Raise InputError unless a network has as many outputs as the data set `name` has classes.

    0 stands for any number from two on.
    """
    if len(class_names) == 1:
        raise InputError(
            f"{name!r} has one class, {class_names[0]!r}; at least two are needed: add another, or"
            " take another --config.dataset.name or --config.dataset.path"
        )
    if num_classes not in (0, len(class_names)):
        raise InputError(
            f"config.model.num_classes={num_classes}, but {name!r} has {len(class_names)} classes;"
            f" give --config.model.num_classes={len(class_names)}, or 0 for as many as there are"
        )


def _parse(share: str | None) -> slice:
    """Return the shards of share 'i/n'; for None all of them."""
    if share is None:
        return slice(None)
    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(
            f"--prepare_shard={share!r}: give i/n with i from 0 to n - 1, such as 0/3, 1/3, 2/3"
        )
    return slice(int(match[1]), None, int(match[2]))


def _accept(directory: pathlib.Path, on_error: str) -> None:
    """Raise InputError if on_error='raise' and the set was made without its undecodable images."""
    try:
        undecodable = json.loads(regular(directory / "statistics.json").read_text())["undecodable"]
    except (OSError, ValueError, KeyError):
        return  # data.open_dataset says what is wrong with it
    if undecodable and on_error == "raise":
        raise InputError(
            f"{directory} was made with on_error=skip and lacks images ({undecodable[0]});"
            f" {SKIP_REMEDY}; if you have repaired them, remove that directory"
        )


@contextlib.contextmanager
def _locked(directory: pathlib.Path, kind: int) -> Iterator[None]:
    """Let one process prepare (LOCK_EX), or several make their shares (LOCK_SH); others wait.

    The system releases the lock of a killed process.
    """
    with open_lock(directory.with_name(directory.name + ".lock")) as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process is preparing {directory}", file=sys.stderr)
            fcntl.flock(lock, kind)
        yield


def _make(
    source: Source,
    dataset: ml_collections.ConfigDict,
    identity: dict,
    directory: pathlib.Path,
    mine: slice,
    num_classes: int | None,
) -> None:
    """Make the unfinished shards of `mine`, and merge them if these are all shards."""
    threads.for_array_record()  # tfds may read with it
    with _locked(directory.with_name(directory.name + ".original"), fcntl.LOCK_EX):
        contents = source.open()  # which may download, once for all shares
    if num_classes is not None:
        check_classes(num_classes, contents.class_names, dataset.name)
    incomplete = directory.with_name(directory.name + ".incomplete")
    allowed = int(MAX_UNDECODABLE * sum(map(len, contents.splits.values())))
    jobs = _jobs(source, contents, dataset, allowed, incomplete)
    chosen = [job for of_split in jobs.values() for job in of_split][mine]
    undecodable: list[str] = []
    left = []
    for job in chosen:
        if shard := finished(job.path):
            undecodable += shard.undecodable
        else:
            left.append(job)
    number = sum(len(job.examples) for job in left)
    needed = number * _image_bytes(dataset)
    if dataset.encoding == "raw":  # its size is known: fail now, not after hours
        _refuse_too_large(needed, directory)
    space = f"about {needed / 1e9:,.2f} GB"
    numbers = ", ".join(f"{len(part):,} {split}" for split, part in contents.splits.items())
    print(
        f"preparing {printable(source.name)} ({numbers} images) in {directory}:"
        f" {number:,} images, {len(left)} of {len(chosen)} shards, {space}",
        file=sys.stderr,
    )
    all_ = mine == slice(None)
    try:
        incomplete.mkdir(exist_ok=True)
        refuse_too_many(undecodable, allowed)
        for skipped in _made(left, number):
            undecodable += skipped
            refuse_too_many(undecodable, allowed)
        if all_:
            paths = {split: [job.path for job in of_split] for split, of_split in jobs.items()}
            merge(source, contents.class_names, paths, dataset, identity, incomplete)
            incomplete.rename(directory)
            sync(directory.parent)
            for job in chosen:  # not before: after a kill they would be needed
                done(directory / job.path.name).unlink()
    except OSError as error:
        remedy = f"it needs {space}; make room there or set another --config.dataset.data_dir"
        raise InputError(
            f"cannot write {directory} ({_reason(error)}): {limit_met(error) or remedy}"
            f"{_kept(incomplete, all_)}"
        ) from error
    except InputError as error:
        raise InputError(f"{error}{_kept(incomplete, all_)}") from error
    except BaseException:
        _kept(incomplete, all_)
        raise
    print(
        f"{'prepared' if all_ else 'made a share of'} {printable(source.name)}; skipped"
        f" {source.num_not_images} files that are not images, {len(undecodable)} undecodable",
        file=sys.stderr,
    )


def _kept(incomplete: pathlib.Path, alone: bool) -> str:
    """Keep finished shards for the next call and return a note; if there are none, keep nothing."""
    number = len(list(incomplete.glob("*.done")))
    if alone:  # else other processes may be writing there
        for file in incomplete.glob("*.tmp"):
            file.unlink()
        if number == 0:
            shutil.rmtree(incomplete, ignore_errors=True)
    return (
        f" ({number} finished shards are kept in {incomplete} to continue from)" if number else ""
    )


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:200]


def _image_bytes(dataset: ml_collections.ConfigDict) -> int:
    """Return the bytes of a stored image: exact for raw, typical of photographs for JPEG."""
    pixels = dataset.image_size**2
    return 3 * pixels if dataset.encoding == "raw" else pixels // 2


def _refuse_too_large(needed: int, directory: pathlib.Path) -> None:
    free = shutil.disk_usage(directory.parent).free
    if needed > free:
        raise InputError(
            f"cannot write {directory}: it needs {needed / 1e9:,.2f} GB, free are"
            f" {free / 1e9:,.2f} GB; free space there, set another --config.dataset.data_dir or"
            " --config.dataset.encoding=jpeg"
        )


def _jobs(
    source: Source,
    contents: Contents,
    dataset: ml_collections.ConfigDict,
    allowed: int,
    directory: pathlib.Path,
) -> dict[str, list[Job]]:
    """Return what is in which shard: a function only of the data set and its settings."""
    jobs: dict[str, list[Job]] = {}
    for split, examples in contents.splits.items():
        if not examples:
            raise InputError(f"{source.name} has no images in its {split} split")
        total = len(examples)
        number = min(MAX_SHARDS, math.ceil(total * _image_bytes(dataset) / SHARD_BYTES))
        jobs[split] = [
            Job(
                directory / f"pictures-{split}.array_record-{i:05d}-of-{number:05d}",
                examples[i * total // number : (i + 1) * total // number],
                dataset,
                len(contents.class_names),
                allowed,
            )
            for i in range(number)
        ]
    return jobs


def _made(jobs: list[Job], number: int) -> Iterator[list[str]]:
    """Make the shards of `number` images on all cores with a progress bar; see make_shards."""
    if not jobs:
        return
    processes = min(cores(), len(jobs), 1 + number // IMAGES_PER_PROCESS)
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds: a log needs fewer lines
    with tqdm(total=number, desc="prepare", unit="img", mininterval=interval) as progress:
        yield from make_shards(jobs, processes, progress.update)
