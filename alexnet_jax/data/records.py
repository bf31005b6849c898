"""The records of a prepared data set, and what happens where one cannot be read.

A damaged record raises an error that names it. With `on_error='skip'` the next readable record of
its split, in stored order, replaces it; which one does not depend on the batch, the step or the
process. Damaged records are counted, and more than 1 % of the split are refused.
"""

import sys
import threading

import numpy as np

from alexnet_jax.data.stored_images import Stored, StoredImages
from alexnet_jax.errors import InputError, limit_met

MAX_DAMAGED = 0.01  # share of a split's records that on_error='skip' may pass over
_NAMED = 10  # damaged records that are named on stderr; more are only counted


class Records:
    """The records of one split. May be read from any thread.

    Attributes:
      images: the records without this treatment of damage.
      damaged: indices of the records that could not be read so far.
    """

    def __init__(self, stored: Stored, on_error: str = "raise") -> None:
        """Take what is stored, and what to do about damaged records; open no file."""
        self.images = StoredImages(stored)
        self._on_error = on_error
        self._lock = threading.Lock()
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, image: np.ndarray) -> int:
        """Decode record `index` into `image`, uint8 (S, S, 3), contiguous, and return its label.

        Raises:
          InputError: it cannot be read, or with on_error='skip' too many cannot be read.
        """
        while True:
            if index not in self.damaged:
                try:
                    return self.images.read(index, image)
                except MemoryError:
                    raise
                except Exception as error:  # array_record, protobuf and simplejpeg share no class
                    self._note(index, error)
            # Also if another thread has found it, in a later batch: the same batch always fails.
            if len(self.damaged) > MAX_DAMAGED * len(self):
                raise InputError(
                    f"more than {MAX_DAMAGED:.0%} of the {len(self)} records are damaged, which"
                    f" on_error=skip does not accept; one is {self.images.name(index)}"
                )
            index = (index + 1) % len(self)

    def _note(self, index: int, error: Exception) -> None:
        """Count a damaged record; raise InputError where that is not allowed."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        message = f"{self.images.name(index)} cannot be read ({reason})"
        if remedy := limit_met(error):  # nothing is damaged
            raise InputError(f"{message}: {remedy}") from error
        if self._on_error == "raise":
            raise InputError(
                f"{message}: remove the directory to rebuild it, or skip damaged records with"
                " --config.dataset.on_error=skip"
            ) from error
        with self._lock:
            known = index in self.damaged  # another thread has just found it
            self.damaged.add(index)
            number = len(self.damaged)
        if not known and number <= _NAMED:
            print(f"skipped: {message}", file=sys.stderr)
