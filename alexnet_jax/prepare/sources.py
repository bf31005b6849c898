"""Sources of images: a tfds name, a folder per class, or scikit-learn's digits.

`open_source(config.dataset)` returns a `Source`, from which stored_set.py makes the stored data set
in the same way for every origin.

* 'folder': `path/train/<class>/*` and `path/val/<class>/*`, where `val/` may have another name
  (HELD_OUT); or `path/<class>/*` alone, of which `val_fraction` is held out (_held_out). Class
  names are the sorted folder names. Only files directly in a class folder are read; what is not an
  image by its extension (README, Thumbs.db, dot-files, subfolders) is skipped and counted.
* 'digits': 1797 digits of 8x8 pixels that come with scikit-learn; every fifth is 'val'.
* anything else is the name of a tensorflow_datasets builder (sources_tfds.py).
"""

import bisect
import hashlib
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.fields import expanded
from alexnet_jax.prepare import sources_tfds
from alexnet_jax.prepare.examples import Contents, Example, Source
from alexnet_jax.prepare.images import EXTENSIONS

# What the folder of the held-out images may be called. Of several, the first one counts.
HELD_OUT = ("val", "valid", "validation", "test")


def open_source(dataset: ml_collections.ConfigDict) -> Source:
    """Return the source that `config.dataset` names (`name`, `path`, `val_fraction`, `data_dir`).

    Raises:
      InputError: the data set does not exist, or the folder does not have the layout above.
    """
    if dataset.name == "folder":
        return _folder(expanded("config.dataset.path", dataset.path), dataset.val_fraction)
    if dataset.name == "digits":
        return Source("digits", "digits: sklearn.datasets.load_digits", 0, _digits)
    return sources_tfds.source(dataset.name, expanded("config.dataset.data_dir", dataset.data_dir))


# --- a folder of images per class -------------------------------------------------------------


def _folder(root: pathlib.Path, val_fraction: float) -> Source:
    if not root.is_dir():
        raise InputError(
            f"dataset.path {root} is not a folder: give one of one folder per class, or of train/"
            " and val/"
        )
    try:
        parts = _parts(root, val_fraction)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror})") from error
    class_names = tuple(sorted(parts["train"].files))
    digest = hashlib.sha256()
    splits: dict[str, Sequence[Example]] = {}
    for split, part in parts.items():
        for class_name in class_names:
            for name, size in part.files[class_name]:
                digest.update(os.fsencode(f"{split}/{class_name}/{name}\0{size}\n"))
        splits[split] = _FolderSplit(
            part.folder,
            [(i, c, [name for name, _ in part.files[c]]) for i, c in enumerate(class_names)],
        )
    return Source(
        root.resolve().name,
        f"folder: {digest.hexdigest()}",
        sum(part.num_others for part in parts.values()),
        lambda: Contents(class_names, splits),
    )


class _Listing(NamedTuple):
    folder: pathlib.Path
    files: dict[str, list[tuple[str, int]]]  # class name -> sorted (file name, bytes)
    num_others: int = 0  # files and subfolders that are not images


def _parts(root: pathlib.Path, val_fraction: float) -> dict[str, _Listing]:
    """Return what is in the splits 'train' and 'val', whose classes are the same."""
    held_out = next((name for name in HELD_OUT if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        if held_out is None:
            return _divided(_list(root), val_fraction)
        raise InputError(
            f"{root} has no train/ beside {held_out}/: images belong in train/<class>/ and"
            f" {held_out}/<class>/"
        )
    if held_out is None:
        raise InputError(
            f"{root} has none of {'/, '.join(HELD_OUT)}/ beside train/: put held-out images in"
            f" val/<class>/, or hold out a part of train/ by --config.dataset.path={root / 'train'}"
        )
    parts = {"train": _list(root / "train"), "val": _list(root / held_out)}
    train, val = (set(part.files) for part in parts.values())
    if train != val:
        only = [f"{n!r} only in train/" for n in sorted(train - val)[:5]]
        only += [f"{n!r} only in {held_out}/" for n in sorted(val - train)[:5]]
        raise InputError(
            f"the class folders of {root} differ: {', '.join(only)}"
            f" ({len(train ^ val)} in all); both must have the same classes"
        )
    return parts


def _divided(all_: _Listing, val_fraction: float) -> dict[str, _Listing]:
    """Return the splits of a folder that does not have them.

    An image is held out where a hash of its class and name, as a number from 0 to 1, is less than
    `val_fraction`. So more images, more classes or a larger fraction move none back. Of a class
    of which all would be held out, the image with the largest hash is trained on.
    """
    train, val = (_Listing(all_.folder, {}, n) for n in (all_.num_others, 0))
    for class_name, files in all_.files.items():
        numbers = [_number(f"{class_name}/{name}") for name, _ in files]
        border = min(val_fraction, max(numbers))
        each = list(zip(files, numbers, strict=True))
        train.files[class_name] = [file for file, number in each if number >= border]
        val.files[class_name] = [file for file, number in each if number < border]
    if not any(val.files.values()):
        raise InputError(
            f"of the images in {all_.folder} none is held out by config.dataset.val_fraction="
            f"{val_fraction:g}; add images, or give a larger one"
        )
    return {"train": train, "val": val}


def _number(path: str) -> float:
    """Return a number from 0 to 1 that depends on `path` alone."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:8]) / 2**64


class _FolderSplit(Sequence[Example]):
    """The files of some classes: only their names, because there may be millions.

    Each class is its label, the name of its folder and the names of its files.
    """

    def __init__(self, folder: pathlib.Path, classes: list[tuple[int, str, list[str]]]):
        self._folder = folder
        self._classes = classes
        self._ends = list(itertools.accumulate(len(names) for _, _, names in classes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            parts = []
            for (label, class_name, names), end in zip(self._classes, self._ends, strict=True):
                first = end - len(names)
                part = names[max(0, start - first) : max(0, stop - first)]
                if part:
                    parts.append((label, class_name, part))
            return _FolderSplit(self._folder, parts)
        position = bisect.bisect_right(self._ends, index)
        label, class_name, names = self._classes[position]
        file = self._folder / class_name / names[index - self._ends[position]]
        return Example(file, label, str(file))


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file; None if it is not a file but a folder, a pipe or a device.

    For a link to nothing or to itself return -1: decoding it will raise an error that names it.
    """
    try:
        if entry.is_file():
            return entry.stat().st_size
        return None if pathlib.Path(entry.path).exists() else -1
    except OSError:
        return -1


def _list(root: pathlib.Path) -> _Listing:
    files: dict[str, list[tuple[str, int]]] = {}
    num_others = 0
    for folder in _entries(root):
        if not folder.is_dir() or folder.name.startswith("."):
            num_others += 1
            continue
        if not folder.name.isprintable():
            raise InputError(
                f"class folder {folder.path!r}: its name becomes the class name; rename it to"
                " printable UTF-8"
            )
        files[folder.name] = []
        for entry in _entries(folder):
            extension = pathlib.PurePath(entry.name).suffix.lower()
            size = None if entry.name.startswith(".") else _size(entry)
            if extension in EXTENSIONS and size is not None:
                files[folder.name].append((entry.name, size))
            else:
                num_others += 1
        if not files[folder.name]:
            raise InputError(
                f"class folder {folder.path} has no images directly in it: add some or remove it"
            )
    if not files:
        raise InputError(f"{root} has no class folders: images belong in {root}/<class>/")
    return _Listing(root, files, num_others)


# --- the embedded digits ----------------------------------------------------------------------


def _digits() -> Contents:
    """Return 1438 train and 359 val digits of 8x8 grey pixels, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits  # takes half a second to import

    bunch = load_digits()
    examples = [
        Example(np.rint(pixels * (255 / 16)).astype(np.uint8), int(label), f"digit {index}")
        for index, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True))
    ]
    val = examples[4::5]
    train = [example for index, example in enumerate(examples) if index % 5 != 4]
    return Contents(tuple("0123456789"), {"train": train, "val": val})
