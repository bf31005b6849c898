"""Where pictures come from: a tfds name, a folder per class, or scikit-learn's digits.

`open_source(config.dataset)` gives a `Source` whatever the origin: two random-access sequences
of encoded pictures with labels, 'train' and 'val'. `prepare.py` makes the stored data set from
it and need not know where it came from.

* 'folder': `path/train/<class>/*` and `path/val/<class>/*` (or `test/` if there is no `val/`).
  Class names are the sorted folder names. Only files directly in a class folder count; what is
  no picture by its extension (README, Thumbs.db, dot-files, sub-folders) is skipped and counted.
* 'digits': 1797 digits of 8x8 pixels that come with scikit-learn; every fifth is 'val'.
* anything else is the name of a tensorflow_datasets builder with an 'image' and a 'label';
  'val' is its 'validation' split, or 'test' where there is none. Reading never needs
  TensorFlow; a few builders need it once, to prepare their originals.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from alexnet_jax.errors import InputError

# Not Pillow's own list: that has formats which start an external program (.eps) or are no
# pictures at all (.pdf, .h5).
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm")
)


class Example(NamedTuple):
    """One labelled picture: a path, encoded bytes or uint8 pixels, and its name in messages."""

    picture: pathlib.Path | bytes | np.ndarray
    label: int
    name: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled set of pictures, not yet read.

    Attributes:
      name: for people; begins the name of the prepared set's directory.
      fingerprint: changes when the content does; part of that directory's identity.
      class_names: label i is class_names[i].
      num_not_pictures: files passed over because their extension is no picture's.
      open: gives {'train': ..., 'val': ...}, random access to examples. May download; raises
        InputError when it cannot.
    """

    name: str
    fingerprint: str
    class_names: tuple[str, ...]
    num_not_pictures: int
    open: Callable[[], dict[str, Sequence[Example]]]


def open_source(dataset: ml_collections.ConfigDict) -> Source:
    """Finds the source that `config.dataset` names (`name`, `path`, `data_dir`).

    Raises:
      InputError: no such data set, or a folder without the layout above.
    """
    if dataset.name == "folder":
        return _folder(dataset.path)
    if dataset.name == "digits":
        return Source(
            "digits", "digits: sklearn.datasets.load_digits", tuple("0123456789"), 0, _digits
        )
    return _tfds(dataset.name, pathlib.Path(dataset.data_dir).expanduser())


# --- a folder of pictures per class -----------------------------------------------------------


def _folder(path: str | None) -> Source:
    if not path:
        raise InputError(
            "dataset.name='folder' needs --config.dataset.path=FOLDER (with train/ and val/)"
        )
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"dataset.path {root} is not a folder: give one with train/ and val/")
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        raise InputError(
            f"{root} has no train/: pictures belong in train/<class>/ and val/<class>/"
        )
    if held_out is None:
        raise InputError(
            f"{root} has neither val/ nor test/: put held-out pictures in val/<class>/"
        )
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
    splits: dict[str, list[Example]] = {}
    for split, listing in listings.items():
        splits[split] = []
        for label, class_name in enumerate(class_names):
            folder = root / ("train" if split == "train" else held_out) / class_name
            for name, size in listing.files[class_name]:
                file = folder / name
                splits[split].append(Example(file, label, str(file)))
                digest.update(os.fsencode(f"{split}/{class_name}/{name}\0{size}\n"))
    skipped = sum(listing.num_others for listing in listings.values())
    return Source(
        root.resolve().name,
        f"folder: {digest.hexdigest()}",
        class_names,
        skipped,
        lambda: {**splits},
    )


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


class _Listing(NamedTuple):
    files: dict[str, list[tuple[str, int]]]  # class name -> sorted (file name, bytes)
    num_others: int  # files and sub-folders that are no pictures


def _list(root: pathlib.Path) -> _Listing:
    files: dict[str, list[tuple[str, int]]] = {}
    num_others = 0
    for folder in _entries(root):
        if not folder.is_dir() or folder.name.startswith("."):
            num_others += 1
            continue
        files[folder.name] = []
        for entry in _entries(folder):
            extension = pathlib.PurePath(entry.name).suffix.lower()
            if extension in EXTENSIONS and not entry.name.startswith(".") and not entry.is_dir():
                # A dangling link has no size; it is met again, by name, when it is decoded.
                size = entry.stat().st_size if entry.is_file() else -1
                files[folder.name].append((entry.name, size))
            else:
                num_others += 1
        if not files[folder.name]:
            raise InputError(f"class folder {folder.path} has no pictures: add some or remove it")
    if not files:
        raise InputError(f"{root} has no class folders: pictures belong in {root}/<class>/")
    return _Listing(files, num_others)


# --- the embedded digits ----------------------------------------------------------------------


def _digits() -> dict[str, Sequence[Example]]:
    """1438 train and 359 val digits of 8x8 grey pixels, 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits  # half a second to import, for this source only

    bunch = load_digits()
    splits: dict[str, list[Example]] = {"train": [], "val": []}
    for index, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
        split = "val" if index % 5 == 4 else "train"
        splits[split].append(Example(grey, int(label), f"digit {index}"))
    return {**splits}


# --- a tensorflow_datasets builder ------------------------------------------------------------


def _tfds(name: str, data_dir: pathlib.Path) -> Source:
    # Not tfds.builder's own lookup: for an unknown name that asks the network, through packages
    # that are not installed. This list is local.
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base not in known:
        names = sorted({*known, "folder", "digits"})
        near = [n for n in names if base and n.startswith(base)]
        near = (near or difflib.get_close_matches(base, names, cutoff=0.5))[:5]
        raise InputError(
            f"unknown data set {name!r}: the nearest known names are {', '.join(near) or 'none'};"
            " your own pictures are --config.dataset.name=folder, the embedded digits 'digits'"
        )
    with _explained(name, data_dir):
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        features = builder.info.features
    columns = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = columns.get("image"), columns.get("label")
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype not in (np.uint8, np.uint16)
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise InputError(
            f"tfds data set {name!r} is no image classification set: it has {', '.join(columns)}"
            " and needs an 'image' of integers and a class 'label'; choose another dataset.name"
        )
    full_name = builder.info.full_name
    return Source(
        full_name.replace("/", "-"),
        f"tfds: {full_name}",
        tuple(label.names),
        0,
        lambda: _open_tfds(name, builder, data_dir),
    )


def _open_tfds(name: str, builder: Any, data_dir: pathlib.Path) -> dict[str, Sequence[Example]]:
    # tfds tries a dead address ten times, three and a half minutes in all; four times will do.
    downloader.MAX_RETRIES = 3
    with _explained(name, data_dir, builder.MANUAL_DOWNLOAD_INSTRUCTIONS):
        builder.download_and_prepare(file_format="array_record")
        available = list(builder.info.splits)
        val = next((split for split in ("validation", "test") if split in available), None)
        if "train" not in available or val is None:
            raise InputError(
                f"tfds data set {name!r} has the splits {', '.join(available)}: 'train' and"
                " 'validation' or 'test' are needed; choose another --config.dataset.name"
            )
        decoders = {"image": tfds.decode.SkipDecoding()}
        return {
            split: _TfdsSplit(
                builder.as_data_source(original, decoders=decoders), f"{name} {original}"
            )
            for split, original in (("train", "train"), ("val", val))
        }


class _TfdsSplit(Sequence[Example]):
    """The encoded pictures of one split of a prepared tfds data set."""

    def __init__(self, records: Sequence[dict[str, Any]], name: str):
        self._records = records
        self._name = name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        try:
            record = self._records[index]
        except Exception as error:
            raise InputError(
                f"{self._name} example {index} cannot be read ({_line(error)}):"
                " delete the tfds original so that it is prepared anew"
            ) from error
        return Example(record["image"], int(record["label"]), f"{self._name} example {index}")


@contextlib.contextmanager
def _explained(name: str, data_dir: pathlib.Path, by_hand: str | None = None) -> Iterator[None]:
    """Turns whatever tfds raises into one line with a remedy; keeps its chatter off stdout."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        return
    except InputError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while (following := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(following)
        missing = next((e.name for e in chain if isinstance(e, ModuleNotFoundError) and e.name), "")
        package = missing.split(".")[0]
        if package == "tensorflow":
            message = (
                f"tfds needs TensorFlow to prepare {name!r} (training does not):"
                " pip install tensorflow-cpu, then run this again"
            )
        elif package:
            message = f"tfds needs {package!r} to prepare {name!r}: pip install {package}"
        elif by_hand and isinstance(error, AssertionError | FileNotFoundError):
            message = (
                f"{name!r} must be downloaded by hand into {data_dir / 'downloads' / 'manual'}:"
                f" {' '.join(by_hand.split())}"
            )
        elif isinstance(error, OSError) and "requests" in type(error).__module__:
            message = (
                f"{name!r} cannot be downloaded ({_line(error)}): check the network, or copy the"
                f" data set, prepared elsewhere, into {data_dir}"
            )
        elif isinstance(error, NotImplementedError):
            message = (
                f"{name!r} is in {data_dir} in a format without random access: delete it there, or"
                " set another --config.dataset.data_dir"
            )
        else:
            message = f"tfds cannot open {name!r} in {data_dir}: {_line(error)}"
        raise InputError(message) from error


def _line(error: BaseException) -> str:
    """The error as one line of bounded length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + " ..."
