"""Images by the name of a tensorflow_datasets builder with an 'image' and a 'label'.

Training reads its 'train' split. 'val' is its 'validation' split, or else 'test'. A data set with
neither holds out the last tenth of 'train', always the same images, because tfds stores them in one
shuffled order. Reading never needs TensorFlow; a few builders, such as imagenet2012 and cifar10,
need it once, to prepare their originals.
"""

import contextlib
import difflib
import functools
import io
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.prepare.examples import Contents, Example, Source

HELD_OUT = "10%"  # of a data set that has only a train split
# Files to download by hand; all of them are needed.
ORIGINALS = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}


def source(name: str, data_dir: pathlib.Path) -> Source:
    """Return the data set `name`; its original is in `data_dir`, or will be downloaded there.

    Raises:
      InputError: the data set does not exist, or it does not consist of labelled images.
    """
    # Not tfds.builder's own lookup: for an unknown name it uses the network, through packages that
    # are not installed. This list is local.
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base not in known:
        names = sorted({*known, "folder", "digits"})
        near = [n for n in names if base and n.startswith(base)]
        near = (near or difflib.get_close_matches(base, names, cutoff=0.5))[:5]
        raise InputError(
            f"unknown data set {name!r}: the nearest known names are {', '.join(near) or 'none'};"
            " set --config.dataset.name=folder for your own images, digits for scikit-learn's"
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
            f"tfds data set {name!r} is not for image classification: it has {', '.join(columns)}"
            " and needs an 'image' of integers and a class 'label'; choose another dataset.name"
        )
    full_name = builder.info.full_name
    return Source(
        full_name.replace("/", "-"), f"tfds: {full_name}", 0, lambda: _open(name, builder, data_dir)
    )


def _open(name: str, builder: Any, data_dir: pathlib.Path) -> Contents:
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    manual = data_dir / "downloads" / "manual"
    if by_hand and not builder.data_path.exists():
        # Checked before the next error, that TensorFlow is missing, and before tfds makes a set of
        # only the files that exist.
        missing = [file for file in ORIGINALS.get(builder.name, ()) if not (manual / file).exists()]
        if missing or not any(manual.glob("*")):
            raise InputError(_by_hand(name, manual, by_hand, missing))
    # By default tfds tries a dead address ten times, which takes three and a half minutes.
    downloader.MAX_RETRIES = 3
    with _explained(name, data_dir, by_hand):
        builder.download_and_prepare(file_format="array_record")
        available = list(builder.info.splits)
        val = next((split for split in ("validation", "test") if split in available), None)
        if "train" not in available:
            raise InputError(
                f"tfds data set {name!r} has the splits {', '.join(available)} and needs 'train';"
                " choose another --config.dataset.name"
            )
        if val:
            originals = {"train": "train", "val": val}
        else:
            originals = {"train": f"train[:-{HELD_OUT}]", "val": f"train[-{HELD_OUT}:]"}
        directory = str(builder.data_dir)
        splits: dict[str, Sequence[Example]] = {
            split: _Split(name, directory, part, range(len(_records(directory, part))))
            for split, part in originals.items()
        }
        # Only now: some builders, such as cifar10, read their class names from what they download.
        return Contents(tuple(builder.info.features["label"].names), splits)


@functools.cache
def _records(data_dir: str, split: str) -> Any:
    builder = tfds.builder_from_directory(data_dir)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


class _Split(Sequence[Example]):
    """The encoded images at `indices` of one split of a prepared tfds data set.

    It holds no open file, so that it can be sent to another process.
    """

    def __init__(self, name: str, data_dir: str, split: str, indices: range):
        self._name, self._data_dir, self._split, self._indices = name, data_dir, split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Split(self._name, self._data_dir, self._split, self._indices[index])
        name = f"{self._name} {self._split} example {self._indices[index]}"
        try:
            record = _records(self._data_dir, self._split)[self._indices[index]]
        except Exception as error:
            remedy = limit_met(error) or "delete the tfds original to prepare it again"
            raise InputError(f"{name} cannot be read ({_line(error)}): {remedy}") from error
        return Example(record["image"], int(record["label"]), name)


@contextlib.contextmanager
def _explained(name: str, data_dir: pathlib.Path, by_hand: str | None = None) -> Iterator[None]:
    """Turn what tfds raises into one line with a remedy, and keep its output off stdout."""
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
        elif by_hand and (
            isinstance(error, AssertionError | FileNotFoundError)
            or type(error).__name__ == "NotFoundError"  # TensorFlow's
        ):
            message = _by_hand(name, data_dir / "downloads" / "manual", by_hand)
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


def _by_hand(
    name: str, manual: pathlib.Path, instructions: str, missing: Sequence[str] = ()
) -> str:
    lacking = f" ({' and '.join(missing)} missing)" if missing else ""
    return (
        f"{name!r} must be downloaded by hand into {manual}{lacking}:"
        f" {' '.join(instructions.split())}"
    )


def _line(error: BaseException) -> str:
    """Return the error as one line of bounded length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + " ..."
