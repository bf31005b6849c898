"""Class names and probabilities of pictures, by the network of a run."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from alexnet_jax import augment, checkpoint
from alexnet_jax import model as model_lib
from alexnet_jax.pictures import load_image

BATCH = 32
Path = str | os.PathLike[str]


def predict(
    workdir: str | pathlib.Path,
    images: Path | np.ndarray | Iterable[Path | np.ndarray],
    top: int = 5,
) -> list[list[tuple[str, float]]]:
    """Name what pictures show, with the best checkpoint of a run.

    Args:
      workdir: the directory of a run, finished or not.
      images: paths of pictures, or uint8 arrays (height, width, 3) or (height, width) of any size;
        one, or any number of them. Each is cut and scaled to the stored size of the run's data set,
        and its centre crop is judged.
      top: how many classes to name.

    Returns:
      For each picture its `top` classes as (name, probability), the most probable first.

    Raises:
      InputError: `workdir` holds no checkpoint, or a picture cannot be read.
    """
    config, state, run = checkpoint.load(workdir)
    model = model_lib.from_config(config)
    one = isinstance(images, str | os.PathLike) or getattr(images, "ndim", 4) < 4
    pictures: Any = [images] if one else images

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        crops = augment.centre_crop(images, state.mean_image, crop=config.augment.crop)
        logits: Any = model.apply({"params": state.params}, crops)
        return jax.nn.softmax(logits)

    squares = [load_image(picture, config.dataset.image_size) for picture in pictures]
    answers = []
    for start in range(0, len(squares), BATCH):
        batch = np.stack(squares[start : start + BATCH])
        answers += [_best(row, run["class_names"], top) for row in np.asarray(probabilities(batch))]
    return answers


def _best(row: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    return [(names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]]
