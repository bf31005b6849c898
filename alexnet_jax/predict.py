"""Class names and probabilities of images, by the network of a run."""

import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from alexnet_jax import augment
from alexnet_jax import model as model_lib
from alexnet_jax.prepare import load_image
from alexnet_jax.rundir import checkpoint

BATCH = 32
Path = str | os.PathLike[str]
Answer = list[tuple[str, float]]  # classes and their probabilities, the most probable first
T = TypeVar("T")


class Classifier:
    """The network of a run's best checkpoint, compiled when it is first called.

    Attributes:
      size: side in pixels of the images that it takes, `config.dataset.image_size`.
      step: of the checkpoint.
      class_names: of the data set that it was trained on.

    Raises:
      InputError: `workdir` holds no checkpoint.
    """

    def __init__(self, workdir: str | pathlib.Path) -> None:
        config, state, record = checkpoint.load(workdir)
        model = model_lib.from_config(config)
        self.size: int = config.dataset.image_size
        self.step = int(state.step)
        self.class_names: Sequence[str] = record.class_names

        @jax.jit
        def probabilities(images: jax.Array) -> jax.Array:
            crops = augment.centre_crop(images, state.mean_image, config.augment.crop)
            logits: Any = model.apply({"params": state.params}, crops)
            return jax.nn.softmax(logits)

        self._probabilities = probabilities

    def __call__(self, squares: Sequence[np.ndarray], top: int) -> list[Answer]:
        """Return the `top` classes of each of `squares`, uint8 (size, size, 3)."""
        return [self._best(row, top) for row in np.asarray(self._probabilities(np.stack(squares)))]

    def _best(self, row: np.ndarray, top: int) -> Answer:
        order = np.argsort(-row, kind="stable")[:top]
        return [(self.class_names[i], float(row[i])) for i in order]


def predict(
    workdir: str | pathlib.Path,
    images: Path | np.ndarray | Iterable[Path | np.ndarray],
    top: int = 5,
) -> list[Answer]:
    """Classify images with the best checkpoint of a run.

    Args:
      workdir: the directory of a run, finished or not.
      images: paths, or uint8 arrays (height, width, 3) or (height, width) of any size;
        one, or any number of them. Each is cut and scaled to the stored size of the run's data set,
        and its centre crop is judged.
      top: how many classes to name.

    Returns:
      For each image its `top` classes as (name, probability), the most probable first.

    Raises:
      InputError: `workdir` holds no checkpoint, or an image cannot be read.
    """
    classifier = Classifier(workdir)
    one = isinstance(images, str | os.PathLike) or getattr(images, "ndim", 4) < 4
    several: Any = [images] if one else images
    squares = (load_image(image, classifier.size) for image in several)
    return [answer for batch in batches(squares) for answer in classifier(batch, top)]


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists of BATCH, of which the last may be shorter."""
    left = iter(items)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch
