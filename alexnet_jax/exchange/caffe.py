"""Caffe's files, read without Caffe: the weights of a .caffemodel, the mean of a .binaryproto.

Both are protobuf messages of caffe.proto (BVLC, src/caffe/proto). Read are the few fields that are
needed, by the numbers given here; all others are skipped.
"""

import math
import pathlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError
from alexnet_jax.exchange.layout import Foreign, Weights, constant_mean, laid_out

# NetParameter.layers (V1LayerParameter) and .layer (LayerParameter): the numbers of name and blobs.
LAYERS = {2: (4, 6), 100: (1, 7)}
# BlobProto. Shapes are BlobShape.dim, or in older files num, channels, height and width.
LEGACY_SHAPE, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
# Of ILSVRC 2012's training set, blue, green and red: the mean of ilsvrc_2012_mean.npy.
CHANNEL_MEANS = (104.00698793, 116.66876762, 122.67891434)


def read_model(path: pathlib.Path, config: ConfigDict) -> Weights:
    """Return the weights of the .caffemodel at `path`; the mean image is that of CHANNEL_MEANS.

    Caffe's images are BGR, ours RGB: the channels of conv1's kernel and of the mean are reversed.
    Raises InputError where the file is damaged or of another kind.
    """
    layers: Foreign = {}
    try:
        for number, layer in _fields(memoryview(path.read_bytes())):
            if number not in LAYERS or not isinstance(layer, memoryview):
                continue
            of_name, of_blobs = LAYERS[number]
            parts = list(_fields(layer))
            names = [bytes(v).decode() for n, v in parts if n == of_name]
            blobs = [_blob(v) for n, v in parts if n == of_blobs and isinstance(v, memoryview)]
            if len(blobs) == 2 and names:
                weight, bias = blobs
                layers[names[0]] = _without_ones(weight), bias.reshape(-1)
        if not layers:
            raise ValueError("it holds no layer with weights and biases")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is not a whole .caffemodel ({error}), nor a safetensors file; download it"
            " again"
        ) from None
    if "conv1" in layers:
        weight, bias = layers["conv1"]
        layers["conv1"] = weight[:, ::-1], bias
    params = laid_out(layers, np.full(3, config.model.input_scale))
    return Weights(params, constant_mean(np.array(CHANNEL_MEANS[::-1]), config))


def read_mean(path: pathlib.Path) -> np.ndarray:
    """Return the mean image of a .binaryproto, (height, width, 3) float32 RGB."""
    try:
        mean = _blob(memoryview(path.read_bytes()))
        return np.ascontiguousarray(mean.reshape(mean.shape[-3:]).transpose(1, 2, 0)[..., ::-1])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path} is not a whole .binaryproto of a mean image ({error})") from None


def _without_ones(weight: np.ndarray) -> np.ndarray:
    """Return a fully connected layer's weights, (1, 1, outputs, inputs) in older files, as 2-D."""
    return weight[0, 0] if weight.ndim == 4 and weight.shape[:2] == (1, 1) else weight


def _blob(message: memoryview) -> np.ndarray:
    """Return a BlobProto as a float32 array."""
    legacy, shape, data = dict.fromkeys(LEGACY_SHAPE, 1), None, []
    for number, value in _fields(message):
        if number in legacy and isinstance(value, int):
            legacy[number] = value
        elif number == SHAPE and isinstance(value, memoryview):
            shape = [d for n, v in _fields(value) if n == 1 for d in _integers(v)]
        elif number in (DATA, DOUBLE_DATA) and isinstance(value, memoryview):
            kind = "<f4" if number == DATA else "<f8"
            data.append(np.frombuffer(value, kind).astype(np.float32))
    shape = list(legacy.values()) if shape is None else shape
    found = np.concatenate(data) if data else np.zeros(0, np.float32)
    if found.size != math.prod(shape):
        raise ValueError(f"{found.size} numbers for an array of shape {tuple(shape)}")
    return found.reshape(shape)


def _integers(value: int | memoryview) -> Iterator[int]:
    """Yield the varints of a repeated field, packed or not."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer, or bytes (of fixed width or a length)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"it ends {at + length - len(message):,} bytes too early")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at `at`, and where the next field begins."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends inside a number")
        number |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return number, at
    raise ValueError(f"no number at byte {at}")
