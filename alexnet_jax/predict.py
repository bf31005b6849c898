"""Using the network of a run on any images: class names and probabilities, inputs, features."""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

from alexnet_jax import augment
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.fields import nearest
from alexnet_jax.layers import walk
from alexnet_jax.prepare import load_image
from alexnet_jax.rundir import Restored, restore
from alexnet_jax.step import log_probabilities

BATCH = 32
Path = str | os.PathLike[str]
Run = Path | Restored  # the directory of a run, or what `restore` returned
ImageLike = Path | Image.Image | np.ndarray
Images = ImageLike | Iterable[ImageLike]
Answer = list[tuple[str, float]]  # classes and their probabilities, the most probable first
T = TypeVar("T")


class Classifier:
    """The network of a run, by default of its best checkpoint; compiled when it is first called.

    Attributes:
      size: side in pixels of the images that it takes, `config.dataset.image_size`.
      step: of the checkpoint.
      class_names: of the data set that it was trained on.

    Raises:
      InputError: `run` holds no checkpoint.
    """

    def __init__(self, run: Run) -> None:
        restored = restored_from(run)
        _, self._variables, config = restored
        self._config = _frozen(config)
        self.size: int = config.dataset.image_size
        self.step = restored.step
        self.class_names: Sequence[str] = restored.class_names

    def __call__(
        self, squares: Sequence[np.ndarray], top: int, test_crops: bool = False
    ) -> list[Answer]:
        """Return the `top` classes of each of `squares`, uint8 (size, size, 3).

        Their centre crops are judged; with `test_crops` the mean of the crops that
        `config.augment.test_crops` says, as in the last evaluation of a run.
        """
        images = np.stack(squares)
        scores = _scores(self._variables, images, self._config, test_crops)
        return [self._best(row, top) for row in np.asarray(scores)]

    def _best(self, row: np.ndarray, top: int) -> Answer:
        order = np.argsort(-row, kind="stable")[:top]
        return [(self.class_names[i], float(np.exp(row[i]))) for i in order]


def _frozen(config: ConfigDict) -> FrozenConfigDict:
    # Of a copy: a FrozenConfigDict compares the groups of the ConfigDict that it is made of, so a
    # later change there would make it equal to the changed config, and find the wrong program.
    return FrozenConfigDict(config.to_dict())


# Compiled once per process for each config and number of images, however many calls there are.
@functools.partial(jax.jit, static_argnames=("config", "test_crops"))
def _scores(
    variables: Any, images: jax.Array, config: FrozenConfigDict, test_crops: bool
) -> jax.Array:
    network = functools.partial(model_lib.from_config(config).apply, variables)
    mean_image = variables["statistics"]["mean_image"]
    return log_probabilities(network, images, mean_image, config, test_crops)


def predict(workdir: Run, images: Images, top: int = 5) -> list[Answer]:
    """Classify images with the best checkpoint of a run.

    Args:
      workdir: the directory of a run, finished or not; or what `restore` returned, which is quicker
        for several calls.
      images: paths, PIL images, or uint8 arrays (height, width, 3) or (height, width), of any size;
        one, or any number of them. Each is cut and scaled to the stored size of the run's data set,
        and its centre crop is judged.
      top: how many classes to name, at least 1.

    Returns:
      For each image its `top` classes as (name, probability), the most probable first.

    Raises:
      InputError: `workdir` holds no checkpoint, an image cannot be read, or `top` is not an integer
        of at least 1.
    """
    if not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top={top!r}: give how many classes to name, at least 1")
    classifier = Classifier(workdir)
    squares = loaded(images, classifier.size)
    return [answer for batch in batches(squares) for answer in classifier(batch, top)]


def preprocess(run: Run, images: Images) -> np.ndarray:
    """Return what the network of a run sees of images, for `model.apply`.

    Args:
      run: as `workdir` of `predict`.
      images: as for `predict`.

    Returns:
      float32 (number, crop, crop, 3): RGB of 0 to 255 of each centre crop less the run's mean
      image. `restore`'s `model.apply(variables, preprocess(run, images))` gives logits.

    Raises:
      InputError: as `predict`, or there are no images.
    """
    _, variables, config = restored_from(run)
    mean_image, crop = variables["statistics"]["mean_image"], config.augment.crop
    squares = batches(loaded(images, config.dataset.image_size))
    stacked = (jnp.asarray(np.stack(batch)) for batch in squares)
    return _joined(augment.centre_crop(images, mean_image, crop) for images in stacked)


def features(run: Run, images: Images, layer: str = "fc7") -> np.ndarray:
    """Return the outputs of one layer for images, computed in batches.

    Args:
      run: as `workdir` of `predict`.
      images: as for `predict`; their centre crops are seen.
      layer: 'conv1' to 'conv5', 'fc6', 'fc7' or 'fc8', or as the layers of the run are named. The
        ReLU (or tanh) that directly follows a layer belongs to it, as in Caffe: 'fc6' and 'fc7' are
        after ReLU, and before the factor 1 - dropout of `dropout_scaling='test'`; 'fc8' are the
        logits. Normalization and pooling are not included; a stage's own name, such as 'lrn1',
        'max_pool5' or 'dropout7', gives its output.

    Returns:
      float32 (number, height, width, channels), or (number, units) of fully connected layers.

    Raises:
      InputError: as `predict`, the run has no such layer, or there are no images.
    """
    _, variables, config = restored_from(run)
    name, frozen = _output_of(layer, config), _frozen(config)
    squares = batches(loaded(images, config.dataset.image_size))
    return _joined(_output(variables, np.stack(batch), frozen, name) for batch in squares)


def _output_of(layer: str, config: ConfigDict) -> str:
    """Return the name under which the model notes the output of `layer`, for `features`."""
    names = [part.name for part in walk(config.model, config.augment.crop)]
    if layer not in names:
        hint = nearest(str(layer), names)
        raise InputError(f"layer={layer!r}: the layers are {', '.join(names)}{hint}")
    follows = [*names[1:], ""][names.index(layer)]
    is_stage = not layer.startswith(("conv", "local", "fc"))
    return follows if follows.startswith(("relu", "tanh")) and not is_stage else layer


@functools.partial(jax.jit, static_argnames=("config", "name"))
def _output(variables: Any, images: jax.Array, config: FrozenConfigDict, name: str) -> jax.Array:
    mean_image = variables["statistics"]["mean_image"]
    crops = augment.centre_crop(images, mean_image, config.augment.crop)
    _, noted = model_lib.from_config(config).apply(
        variables,
        crops,
        capture_intermediates=lambda module, _: module.name == name,  # stages are noted anyway
        mutable=["intermediates"],
    )
    found: Any = noted["intermediates"][name]
    [output] = found["__call__"] if isinstance(found, dict) else found
    return output.astype(jnp.float32)


def restored_from(run: Run) -> Restored:
    """Return the best checkpoint of a run, or `run` itself if it has been restored already."""
    return run if isinstance(run, Restored) else restore(pathlib.Path(run))


def loaded(images: Images, size: int) -> Iterator[np.ndarray]:
    """Yield `images`, one or any number as `predict` takes them, as uint8 (size, size, 3)."""
    one = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) < 4
    several: Any = [images] if one else images
    if not isinstance(several, Iterable):
        raise InputError(
            f"{type(images).__name__} is not images: give paths, PIL images or uint8 arrays"
        )
    for i, image in enumerate(several):
        if isinstance(image, jax.Array):
            image = np.asarray(image)
        name = None if isinstance(image, str | os.PathLike) else f"image {i}"
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            raise InputError(f"{name} is an array of {image.dtype}: give uint8, 0 to 255")
        yield load_image(image, size, name)


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists of BATCH, of which the last may be shorter."""
    left = iter(items)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch


def _joined(parts: Iterable[jax.Array]) -> np.ndarray:
    arrays = [np.asarray(part) for part in parts]
    if not arrays:
        raise InputError("there are no images: give at least one")
    return np.concatenate(arrays)
