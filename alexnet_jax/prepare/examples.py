"""What a source of pictures gives, whatever its origin: labelled examples, not yet decoded."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One labelled picture: a path, encoded bytes or uint8 pixels, and its name in messages."""

    picture: pathlib.Path | bytes | np.ndarray
    label: int
    name: str


class Contents(NamedTuple):
    """The examples of an opened source.

    Attributes:
      class_names: label i is class_names[i].
      splits: {'train': ..., 'val': ...}, random access to examples. A slice is a sequence too,
        small enough to be sent to another process.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Sequence[Example]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled set of pictures, not yet read.

    Attributes:
      name: for people; begins the name of the prepared set's directory.
      fingerprint: changes when the content does; part of that directory's identity.
      num_not_pictures: files passed over because their extension is no picture's.
      open: gives the contents. May download; raises InputError when it cannot.
    """

    name: str
    fingerprint: str
    num_not_pictures: int
    open: Callable[[], Contents]
