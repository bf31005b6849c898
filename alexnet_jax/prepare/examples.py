"""What every source of images gives: labelled examples, not yet decoded."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One labelled image: a path, encoded bytes or uint8 pixels, and its name in messages."""

    image: pathlib.Path | bytes | np.ndarray
    label: int
    name: str


class Contents(NamedTuple):
    """The examples of an opened source.

    Attributes:
      class_names: label i is class_names[i].
      splits: {'train': ..., 'val': ...}, random access to examples. A slice is a sequence too,
        small enough to send to another process.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Sequence[Example]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled set of images, not yet read.

    Attributes:
      name: readable; the name of the prepared set's directory starts with it.
      fingerprint: changes when the content does; part of that directory's identity.
      num_not_images: files that are skipped because their extension is not one of an image.
      open: returns the contents. May download; raises InputError if that fails.
    """

    name: str
    fingerprint: str
    num_not_images: int
    open: Callable[[], Contents]
