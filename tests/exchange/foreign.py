"""Networks in the formats of other programs, written and computed without our code."""

import io
import pathlib
import re

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from sklearn.datasets import load_sample_image

CONVOLUTIONS = {"conv1": (4, 0), "conv2": (1, 2), "conv3": (1, 1), "conv4": (1, 1), "conv5": (1, 1)}
GROUPED = ("conv2", "conv4", "conv5")
# caffe.proto's messages: fields as (name, number, type, repeated), the types of descriptor_pb2.
FIELDS = {
    "BlobShape": [("dim", 1, "INT64", True)],
    "BlobProto": [
        *(
            (name, i + 1, "INT32", False)
            for i, name in enumerate(["num", "channels", "height", "width"])
        ),
        ("data", 5, "FLOAT", True),
        ("diff", 6, "FLOAT", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "DOUBLE", True),
    ],
    "LayerParameter": [
        ("name", 1, "STRING", False),
        ("type", 2, "STRING", False),
        ("bottom", 3, "STRING", True),
        ("top", 4, "STRING", True),
        ("blobs", 7, "BlobProto", True),
        ("phase", 10, "INT32", False),
    ],
    "V1LayerParameter": [
        ("bottom", 2, "STRING", True),
        ("top", 3, "STRING", True),
        ("name", 4, "STRING", False),
        ("type", 5, "INT32", False),
        ("blobs", 6, "BlobProto", True),
        ("blobs_lr", 7, "FLOAT", True),
    ],
    "NetParameter": [
        ("name", 1, "STRING", False),
        ("layers", 2, "V1LayerParameter", True),
        ("input", 3, "STRING", True),
        ("input_dim", 4, "INT32", True),
        ("layer", 100, "LayerParameter", True),
    ],
}


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            entry = message.field.add(name=field, number=number, label=label)
            if kind in FIELDS:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                entry.type = getattr(kinds, f"TYPE_{kind}")
                entry.options.packed = repeated and kind != "STRING"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in FIELDS
    }


MESSAGES = _messages()


def blob(array, *, legacy=False, double=False):
    """Return a BlobProto of `array`, its shape in four numbers if `legacy`."""
    message = MESSAGES["BlobProto"]()
    if legacy:
        four = (1,) * (4 - array.ndim) + array.shape
        message.num, message.channels, message.height, message.width = four
    else:
        message.shape.dim.extend(array.shape)
    (message.double_data if double else message.data).extend(array.ravel().tolist())
    return message


def caffemodel(layers, *, v1=False, legacy=False, double=False):
    """Return the bytes of a .caffemodel of {name: (weight, bias)}, among layers without weights."""
    net = MESSAGES["NetParameter"](name="AlexNet", input=["data"], input_dim=[10, 3, 227, 227])
    for name, arrays in layers.items():
        layer = (net.layers if v1 else net.layer).add(name=name, bottom=["data"], top=[name])
        layer.type = 4 if v1 else "Convolution"
        layer.blobs.extend(blob(array, legacy=legacy, double=double) for array in arrays)
        (net.layers if v1 else net.layer).add(name=f"relu_{name}", bottom=[name], top=[name])
    return net.SerializeToString()


def random_layers(features, hidden, classes, *, groups=1, seed=0):
    """Return {name: (weight, bias)} for 3 x 3 x ... kernels of AlexNet, channels first, float32."""
    rng, layers, inputs = np.random.default_rng(seed), {}, 3
    kernels = (11, 5, 3, 3, 3)
    for i, (outputs, kernel) in enumerate(zip(features, kernels, strict=True), start=1):
        share = groups if f"conv{i}" in GROUPED else 1
        shape = (outputs, inputs // share, kernel, kernel)
        layers[f"conv{i}"], inputs = (_normal(rng, shape), _normal(rng, (outputs,))), outputs
    inputs *= 36
    for i, outputs in enumerate((*hidden, classes), start=6):
        layers[f"fc{i}"] = _normal(rng, (outputs, inputs)), _normal(rng, (outputs,))
        inputs = outputs
    return layers


def _normal(rng, shape):
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
    return (rng.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in)).astype(np.float32)


def photographs(size):
    """Return the two photographs that scikit-learn carries, (2, size, size, 3) uint8 RGB."""
    squares = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name)[:, :427])
        squares.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(squares)


def forward(layers, x, stages, *, first_padding=0, groups=1):
    """Return the maps of AlexNet in float64, channels first, by layer: after its stages.

    `stages` name what follows each convolution: relu, lrn (Caffe's, k = 1, alpha = 1e-4 over n = 5)
    and pool (3 by 3, stride 2, rounded up as Caffe does).
    """
    maps = {}
    for name, after in zip(CONVOLUTIONS, stages, strict=True):
        weight, bias = (array.astype(np.float64) for array in layers[name])
        stride, padding = CONVOLUTIONS[name]
        padding = first_padding if name == "conv1" else padding
        share = groups if name in GROUPED else 1
        x = _convolution(x, weight, stride, padding, share) + bias[:, None, None]
        for stage in after:
            x = {"relu": lambda x: np.maximum(x, 0), "lrn": _lrn, "pool": _pool}[stage](x)
        maps[name] = x
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7", "fc8"):
        weight, bias = (array.astype(np.float64) for array in layers[name])
        x = x @ weight.T + bias
        x = maps[name] = x if name == "fc8" else np.maximum(x, 0)
    return maps


def _convolution(x, weight, stride, padding, groups):
    x = np.pad(x, [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2])
    parts = zip(np.split(x, groups, 1), np.split(weight, groups), strict=True)
    done = []
    for inputs, kernel in parts:
        windows = np.lib.stride_tricks.sliding_window_view(inputs, kernel.shape[2:], (2, 3))
        windows = windows[:, :, ::stride, ::stride]
        done.append(np.einsum("nchwij,ocij->nohw", windows, kernel, optimize=True))
    return np.concatenate(done, 1)


def _lrn(x):
    squares = np.pad(x**2, [(0, 0), (2, 2), (0, 0), (0, 0)])
    sums = sum(squares[:, i : i + x.shape[1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * sums) ** 0.75


def _pool(x):
    side = -(-(x.shape[2] - 3) // 2) + 1
    padded = np.full((*x.shape[:2], 2 * side + 1, 2 * side + 1), -np.inf)
    padded[:, :, : x.shape[2], : x.shape[3]] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return windows[:, :, ::2, ::2].max((-2, -1))


def block_of_docs(line):
    """Return the block of Python in docs/weights.md that has `line`."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    [found] = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if line in block]
    return found


def legacy_pickle():
    """Return the first bytes of what torch.save wrote before its zip files."""
    return b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(100)


def zip_file():
    """Return the bytes of a zip, as torch.save writes."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    return buffer.getvalue()
