"""The layers of a network in numbers, from its config alone: nothing is traced or allocated."""

from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError

MOST_ELEMENTS = 2**31 - 1  # of one array: 8 GB in float32, and what int32 indices reach


class Layer(NamedTuple):
    """A layer with parameters: how many elements its kernel has, and its output of one picture."""

    name: str
    weights: int
    outputs: int


def layer_names(model: ConfigDict) -> list[str]:
    """Return the names of the layers of `config.model` that have parameters, in order."""
    first = len(model.layers) + 1
    return [*model.layers, *(f"fc{i}" for i in range(first, first + len(model.hidden) + 1))]


def layers(model: ConfigDict, crop: int) -> list[Layer]:
    """Return the layers of `config.model` for pictures of crop x crop pixels, in order.

    Raises InputError where the crop is too small for one of them, or one is too large to exist.
    """

    def after(side: int, window: int, stride: int) -> int:
        slack = stride - 1 if model.ceil_mode and side >= window else 0
        return (side - window + slack) // stride + 1

    found = []
    side, channels = crop, 3
    for i, name in enumerate(model.layers):
        where, features = name, model.features[i]
        side = after(side + 2 * model.padding[i], model.kernels[i], model.strides[i])
        reads_both = i == 0 or name in model.cross_layers
        inputs = channels if reads_both else channels // model.groups
        weights, outputs = model.kernels[i] ** 2 * inputs * features, side**2 * features
        if name.startswith("local"):  # a kernel for each position
            weights *= side**2
        found.append(Layer(name, weights, outputs))
        channels = features
        for stage in model.stages[i]:
            if side >= 1 and stage in ("max_pool", "avg_pool"):
                where = f"the pooling after {name}"
                side = after(side, model.pool.window, model.pool.stride)
        if side < 1:
            raise InputError(
                f"config.augment.crop={crop} is too small: nothing is left for {where};"
                " take a larger crop, or smaller config.model.kernels and strides"
            )
    inputs = side**2 * channels
    for name, units in zip(
        layer_names(model)[len(model.layers) :], (*model.hidden, model.num_classes), strict=True
    ):
        found.append(Layer(name, inputs * units, units))
        inputs = units
    for layer in found:
        if max(layer.weights, layer.outputs) > MOST_ELEMENTS:
            raise InputError(
                f"config.model: {layer.name} has {layer.weights:,} weights and {layer.outputs:,}"
                f" outputs a picture, more than {MOST_ELEMENTS:,}; take smaller features, kernels,"
                " padding, hidden or num_classes"
            )
    return found


def step_bytes(config: ConfigDict, rows: int, columns: int) -> int:
    """Return what a training step on `rows` images takes at least of a device's memory.

    What is counted exists at one moment of any step: parameters, gradient and velocity in float32,
    which `columns` devices share, and for each image the stored square, the crop and the output of
    each layer, kept for the backward pass. More may be needed.
    """
    found = layers(config.model, config.augment.crop)
    parameters = 3 * 4 * sum(layer.weights for layer in found) // columns
    outputs = sum(layer.outputs for layer in found) * jnp.dtype(config.dtype).itemsize // columns
    image = 3 * config.dataset.image_size**2 + 3 * 4 * config.augment.crop**2 + outputs
    return parameters + rows * image
