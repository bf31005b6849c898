"""The layers of a network in numbers, from its config alone: nothing is traced or allocated.

One walk over them serves the checks of a config, the table of `--mode=summary`, the estimate of a
step's memory and the names by which a profile times them.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError

MOST_ELEMENTS = 2**31 - 1  # of one array: 8 GB in float32, and what int32 indices reach


class Part(NamedTuple):
    """A layer with parameters, or a stage after one.

    Attributes:
      name: 'conv1', 'relu1', 'lrn1', 'max_pool1', ..., 'fc6', 'relu6', 'dropout6', ..., 'fc8'.
      output: its shape for one image: (height, width, channels) or (units,).
      kernel: the shape of the layer's kernel; empty for a stage.
    """

    name: str
    output: tuple[int, ...]
    kernel: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """How many elements the kernel has; 0 for a stage."""
        return math.prod(self.kernel) if self.kernel else 0

    @property
    def parameters(self) -> int:
        """Weights and biases: one bias per channel, of a locally connected layer per output."""
        biases = math.prod(self.output) if self._local else self.output[-1]
        return self.weights + biases if self.kernel else 0

    @property
    def multiply_adds(self) -> int:
        """Per image: each element of a shared kernel serves every position of the output once."""
        return self.weights * (1 if self._local else math.prod(self.output[:-1]))

    @property
    def activations(self) -> int:
        """How many numbers the layer or stage puts out per image."""
        return math.prod(self.output)

    @property
    def _local(self) -> bool:
        return self.name.startswith("local")


def layer_names(model: Any) -> list[str]:
    """Return the names of the layers that have parameters, in order.

    `model` is `config.model`, or an AlexNet, whose attributes are its fields.
    """
    first = len(model.layers) + 1
    return [*model.layers, *(f"fc{i}" for i in range(first, first + len(model.hidden) + 1))]


def wrong_length(model: Any) -> tuple[str, str] | None:
    """Return the first field without one value per layer, and what is wrong with it; else None.

    `model` is `config.model`, or an AlexNet, whose attributes are its fields.
    """
    convolutions, all_layers = len(model.layers), len(layer_names(model))
    lengths = dict.fromkeys(("features", "kernels", "strides", "padding", "stages"), convolutions)
    lengths |= {"biases": all_layers, "init_stds": all_layers if model.init_stds else 0}
    for name, wanted in lengths.items():
        length = len(getattr(model, name))
        if length != wanted:
            layers = ", ".join(layer_names(model)[:wanted])
            return name, f"is of length {length}; the layers are {layers}"
    return None


def walk(model: ConfigDict, crop: int) -> list[Part]:
    """Return the layers and stages of `config.model` for images of crop x crop pixels, in order.

    Raises InputError where the crop is too small for one of them, or one is too large to exist.
    """
    parts: list[Part] = []
    shape: tuple[int, ...] = (crop, crop, 3)
    for i in range(len(model.layers)):
        for part in _convolution(model, i, shape):
            if min(part.output) < 1:
                where = part.name if part.kernel else f"the pooling after {model.layers[i]}"
                raise InputError(
                    f"config.augment.crop={crop} is too small: nothing is left for {where};"
                    " take a larger crop, or smaller config.model.kernels and strides"
                )
            parts.append(part)
            shape = part.output
    inputs = math.prod(shape)
    activation = "tanh" if "tanh" in model.stages[-1] else "relu"
    for number, units in enumerate(model.hidden, start=len(model.layers) + 1):
        parts.append(Part(f"fc{number}", (units,), (inputs, units)))
        parts += [Part(f"{stage}{number}", (units,)) for stage in (activation, "dropout")]
        inputs = units
    parts.append(Part(layer_names(model)[-1], (model.num_classes,), (inputs, model.num_classes)))
    for part in parts:
        if max(part.weights, part.activations) > MOST_ELEMENTS:
            raise InputError(
                f"config.model: {part.name} has {part.weights:,} weights and"
                f" {part.activations:,} outputs per image, more than {MOST_ELEMENTS:,}; take"
                " smaller features, kernels, padding, hidden or num_classes"
            )
    return parts


def _convolution(model: ConfigDict, i: int, shape: tuple[int, ...]) -> Iterator[Part]:
    """Yield convolutional or locally connected layer `i`, whose input has `shape`, and its stages.

    The last one yielded may have no output left.
    """

    def after(side: int, window: int, stride: int) -> int:
        slack = stride - 1 if model.ceil_mode and side >= window else 0
        return (side - window + slack) // stride + 1

    name, features, kernel = model.layers[i], model.features[i], model.kernels[i]
    side = after(shape[0] + 2 * model.padding[i], kernel, model.strides[i])
    reads_both = i == 0 or name in model.cross_layers
    inputs = shape[-1] if reads_both else shape[-1] // model.groups
    if name.startswith("local"):  # a kernel for each position
        weights = (side, side, kernel**2 * inputs, features)
    else:
        weights = (kernel, kernel, inputs, features)
    yield Part(name, (side, side, features), weights)
    for stage in model.stages[i]:
        if stage in ("max_pool", "avg_pool"):
            side = after(side, model.pool.window, model.pool.stride)
        yield Part(f"{stage}{i + 1}", (side, side, features))


def step_bytes(config: ConfigDict, rows: int, columns: int) -> int:
    """Return what a training step on `rows` images takes at least of a device's memory.

    What is counted exists at one moment of any step: parameters, gradient and velocity in float32,
    which `columns` devices share, and for each image the stored square, the crop and the output of
    each layer, kept for the backward pass. More may be needed.
    """
    layers = [part for part in walk(config.model, config.augment.crop) if part.kernel]
    parameters = 3 * 4 * sum(layer.weights for layer in layers) // columns
    outputs = sum(layer.activations for layer in layers)
    outputs = outputs * jnp.dtype(config.dtype).itemsize // columns
    image = 3 * config.dataset.image_size**2 + 3 * 4 * config.augment.crop**2 + outputs
    return parameters + rows * image
