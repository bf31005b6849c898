"""Caffe's files, read without Caffe: the weights of a .caffemodel, the mean of a .binaryproto."""

import math
import pathlib
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from ml_collections import ConfigDict

from alexnet_jax.data import messages
from alexnet_jax.errors import InputError
from alexnet_jax.exchange.layout import Foreign, Weights, constant_mean, laid_out
from alexnet_jax.host import regular

# caffe.proto (BVLC, src/caffe/proto). Packed numbers are encoded as bytes are: read as bytes they
# need no Python object each.
_LEGACY_SHAPE = {"num": 1, "channels": 2, "height": 3, "width": 4}
_MESSAGES: messages.Messages = {
    "NetParameter": {"layers": (2, "V1LayerParameter", True), "layer": (100, "Layer", True)},
    "V1LayerParameter": {"name": (4, messages.BYTES, False), "blobs": (6, "BlobProto", True)},
    "Layer": {"name": (1, messages.BYTES, False), "blobs": (7, "BlobProto", True)},
    "BlobProto": {
        **{name: (number, messages.INT64, False) for name, number in _LEGACY_SHAPE.items()},
        "data": (5, messages.BYTES, True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, messages.BYTES, True),
    },
    "BlobShape": {"dim": (1, messages.INT64, True)},
}
_Net = messages.message_class(_MESSAGES, "NetParameter")
_Blob = messages.message_class(_MESSAGES, "BlobProto")
_LIMIT = 2**31  # bytes of a protobuf message
# Of ILSVRC 2012's training set, blue, green and red: the mean of ilsvrc_2012_mean.npy.
CHANNEL_MEANS = (104.00698793, 116.66876762, 122.67891434)


def read_model(path: pathlib.Path, config: ConfigDict) -> Weights:
    """Return the weights of the .caffemodel at `path`; the mean image is that of CHANNEL_MEANS.

    Caffe's images are BGR, ours RGB: the channels of conv1's kernel and of the mean are reversed.
    Raises InputError where the file is damaged or of another kind.
    """
    content = _bytes(path)
    layers: Foreign = {}
    try:
        net = _Net.FromString(content)
        for layer in (*net.layers, *net.layer):
            if len(layer.blobs) == 2:
                weight, bias = map(_array, layer.blobs)
                layers[layer.name.decode()] = _without_ones(weight), bias.reshape(-1)
        if not layers:
            raise ValueError("it holds no layer with weights and biases")
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole .caffemodel ({error}), nor a safetensors file; download it"
            " again"
        ) from None
    if "conv1" in layers and layers["conv1"][0].ndim == 4:
        weight, bias = layers["conv1"]
        layers["conv1"] = weight[:, ::-1], bias
    params = laid_out(layers, np.full(3, config.model.input_scale))
    return Weights(params, constant_mean(np.array(CHANNEL_MEANS[::-1]), config))


def read_mean(path: pathlib.Path) -> np.ndarray:
    """Return the mean image of a .binaryproto, (height, width, 3) float32 RGB; raise InputError."""
    content = _bytes(path)
    try:
        mean = _array(_Blob.FromString(content))
        return np.ascontiguousarray(mean.reshape(mean.shape[-3:]).transpose(1, 2, 0)[..., ::-1])
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path} is not a whole .binaryproto of a mean image ({error})") from None


def _bytes(path: pathlib.Path) -> bytes:
    try:
        if regular(path).stat().st_size >= _LIMIT:
            raise InputError(f"{path} is larger than 2 GiB: it is not a file of Caffe")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _without_ones(weight: np.ndarray) -> np.ndarray:
    """Return a fully connected layer's weights, (1, 1, outputs, inputs) in older files, as 2-D."""
    return weight[0, 0] if weight.ndim == 4 and weight.shape[:2] == (1, 1) else weight


def _array(blob: Any) -> np.ndarray:
    """Return a BlobProto as a float32 array; raise ValueError where its shape is another."""
    numbers = [np.frombuffer(packed, "<f4") for packed in blob.data]
    numbers += [np.frombuffer(packed, "<f8").astype(np.float32) for packed in blob.double_data]
    found = np.concatenate(numbers) if numbers else np.zeros(0, np.float32)
    legacy = [getattr(blob, name) for name in _LEGACY_SHAPE]
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else tuple(legacy)
    if found.size != math.prod(shape) or min(shape, default=0) < 0:
        raise ValueError(f"{found.size} numbers for an array of shape {shape}")
    return found.reshape(shape)
