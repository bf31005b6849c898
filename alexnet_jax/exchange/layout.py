"""Weights in the layout of AlexNet: from torchvision, and from all that have channels first."""

import math
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

Params = dict[str, dict[str, Any]]  # by layer and then 'kernel' and 'bias', as in AlexNet


class Weights(NamedTuple):
    """The layers of a network, in the layout of AlexNet.

    Attributes:
      params: by layer 'kernel' and 'bias', float32.
      mean_image: (size, size, 3) float32, which its inputs have lost.
      config: of the run that trained it; None where it comes from another program.
    """

    params: Params
    mean_image: np.ndarray
    config: ConfigDict | None = None


Foreign = dict[str, tuple[np.ndarray, np.ndarray]]  # by layer: (outputs, inputs, ...), (outputs,)

# torchvision's names of AlexNet's layers (torchvision/models/alexnet.py), and what it subtracts
# from RGB of 0 to 1 and divides it by.
TORCHVISION = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def of_torchvision(arrays: dict[str, np.ndarray], config: ConfigDict) -> Weights:
    """Return the weights in `arrays`, the state_dict of torchvision's alexnet by its names.

    The division by STD becomes a part of conv1's kernel, for the network subtracts a mean image and
    scales all channels by `config.model.input_scale`: zeros around the image are the mean in both.
    """
    layers: Foreign = {}
    for ours, theirs in TORCHVISION.items():
        weight, bias = (arrays.get(f"{theirs}.{part}") for part in ("weight", "bias"))
        if weight is not None and bias is not None:
            layers[ours] = weight, bias
    params = laid_out(layers, 255 * np.array(STD) * config.model.input_scale)
    return Weights(params, constant_mean(255 * np.array(MEAN), config))


def laid_out(layers: Foreign, divisor: np.ndarray) -> Params:
    """Return `layers` in the layout of AlexNet: HWIO, inputs before outputs, fc6 as (H, W, C).

    `divisor` (3,) divides conv1's kernel by input channel, which is RGB. Layers whose arrays are
    those of no convolution and no matrix are left out.
    """
    params: Params = {}
    channels = 0  # of the convolution before
    for name, (weight, bias) in layers.items():
        if weight.ndim == 4:
            kernel = weight.transpose(2, 3, 1, 0)
            if name == "conv1" and kernel.shape[2] == 3:
                kernel = kernel / divisor[:, None]
            channels = kernel.shape[3]
        elif weight.ndim == 2:
            kernel = weight.T
            side = math.isqrt(kernel.shape[0] // channels) if channels else 0
            if channels and side**2 * channels == kernel.shape[0]:
                by_place = kernel.reshape(channels, side, side, -1).transpose(1, 2, 0, 3)
                kernel = by_place.reshape(kernel.shape)
            channels = 0
        else:
            continue
        arrays = {"kernel": kernel, "bias": bias.reshape(-1)}
        params[name] = {part: np.array(v, np.float32, order="C") for part, v in arrays.items()}
    return params


def constant_mean(rgb: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Return a mean image of the size of `config`'s whose pixels are all `rgb`, of 0 to 255."""
    size = config.dataset.image_size
    return np.broadcast_to(np.float32(rgb), (size, size, 3)).copy()
