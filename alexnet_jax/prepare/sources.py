"""Sources of images: a tfds name, a folder per class, or scikit-learn's digits.

`open_source(config.dataset)` returns a `Source`, from which stored_set.py makes the stored data set
in the same way for every origin.

* 'folder': `path/train/<class>/*` and `path/val/<class>/*` (or `test/` if there is no `val/`).
  Class names are the sorted folder names. Only files directly in a class folder are read; what
  is not an image by its extension (README, Thumbs.db, dot-files, subfolders) is skipped and
  counted.
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


def open_source(dataset: ml_collections.ConfigDict) -> Source:
    """Return the source that `config.dataset` names (`name`, `path`, `data_dir`).

    Raises:
      InputError: the data set does not exist, or the folder does not have the layout above.
    """
    if dataset.name == "folder":
        return _folder(dataset.path)
    if dataset.name == "digits":
        return Source("digits", "digits: sklearn.datasets.load_digits", 0, _digits)
    return sources_tfds.source(dataset.name, expanded("config.dataset.data_dir", dataset.data_dir))


# --- a folder of images per class -------------------------------------------------------------


def _folder(path: str) -> Source:
    root = expanded("config.dataset.path", path)
    if not root.is_dir():
        raise InputError(f"dataset.path {root} is not a folder: give one with train/ and val/")
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        raise InputError(f"{root} has no train/: images belong in train/<class>/ and val/<class>/")
    if held_out is None:
        raise InputError(f"{root} has neither val/ nor test/: put held-out images in val/<class>/")
    try:
        listings = {"train": _list(root / "train"), "val": _list(root / held_out)}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror})") from error

    train, val = (set(listings[split].files) for split in ("train", "val"))
    if train != val:
        only = [f"{n!r} only in train/" for n in sorted(train - val)[:5]]
        only += [f"{n!r} only in {held_out}/" for n in sorted(val - train)[:5]]
        raise InputError(
            f"the class folders of {root} differ: {', '.join(only)}"
            f" ({len(train ^ val)} in all); both must have the same classes"
        )
    class_names = tuple(sorted(train))
    digest = hashlib.sha256()
    splits: dict[str, Sequence[Example]] = {}
    for split, listing in listings.items():
        for class_name in class_names:
            for name, size in listing.files[class_name]:
                digest.update(os.fsencode(f"{split}/{class_name}/{name}\0{size}\n"))
        folder = root / ("train" if split == "train" else held_out)
        splits[split] = _FolderSplit(
            folder,
            [(i, c, [name for name, _ in listing.files[c]]) for i, c in enumerate(class_names)],
        )
    return Source(
        root.resolve().name,
        f"folder: {digest.hexdigest()}",
        sum(listing.num_others for listing in listings.values()),
        lambda: Contents(class_names, splits),
    )


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


class _Listing(NamedTuple):
    files: dict[str, list[tuple[str, int]]]  # class name -> sorted (file name, bytes)
    num_others: int  # files and subfolders that are not images


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
            raise InputError(f"class folder {folder.path} has no images: add some or remove it")
    if not files:
        raise InputError(f"{root} has no class folders: images belong in {root}/<class>/")
    return _Listing(files, num_others)


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
