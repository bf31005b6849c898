"""A network as an ONNX graph, made of the operators that ONNX has for its layers.

Written here with the package `onnx`, not traced by jax2onnx: that one needs an older orbax than
this package does, and writes each pooling as a hundred slices.
"""

import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError
from alexnet_jax.layers import walk
from alexnet_jax.ops import overhang
from alexnet_jax.state import TrainState

OPSET = 17  # of 2022: nothing newer is needed
IR_VERSION = 8


def refuse(config: ConfigDict) -> None:
    """Raise InputError where packages are missing, or a normalization has no operator in ONNX."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format=onnx needs {error.name}: pip install onnx onnxruntime"
        ) from None
    if config.model.lrn.n % 2 == 0 and any("lrn" in stages for stages in config.model.stages):
        raise InputError(
            f"--format=onnx: config.model.lrn.n={config.model.lrn.n} is even, for which ONNX has no"
            " operator; take --format=stablehlo"
        )


def session(file: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function of an ONNX file, computed by onnxruntime on the CPU."""
    import onnxruntime

    opened = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: opened.run(None, {"images": images})[0]


def model(config: ConfigDict, state: TrainState, class_names: Sequence[str]) -> bytes:
    """Return the ONNX file of `state`'s network: images, uint8 NHWC, to probabilities.

    It holds config, class names and step as metadata.
    """
    import onnx
    from onnx import helper

    graph = _Graph()
    crop, size = config.augment.crop, config.dataset.image_size
    first = (size - crop) // 2
    mean = np.asarray(state.mean_image)[first : first + crop, first : first + crop]
    x = graph.add("Cast", "images", to=onnx.TensorProto.FLOAT)
    bounds = [np.array([bound] * 2) for bound in (first, first + crop)]
    x = graph.add("Slice", x, *bounds, np.array([1, 2]))
    x = graph.add("Sub", x, mean)
    x = graph.add("Mul", x, np.float32(config.model.input_scale))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    graph.layers(config, state.params, x)

    shapes = {"images": ["batch", size, size, 3], "probabilities": ["batch", len(class_names)]}
    types = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    ends = [
        helper.make_tensor_value_info(name, kind, shape)
        for (name, shape), kind in zip(shapes.items(), types, strict=True)
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "alexnet", ends[:1], ends[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet_jax",
    )
    metadata = {"config": json.dumps(config.to_dict()), "class_names": json.dumps(class_names)}
    helper.set_model_props(made, metadata | {"step": str(int(state.step))})
    onnx.checker.check_model(made)
    return made.SerializeToString()


class _Graph:
    """The nodes of a graph as they are added, and its constants. Feature maps are NCHW."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output; inputs are names or arrays."""
        from onnx import helper, numpy_helper

        names = []
        for value in inputs:
            if not isinstance(value, str):
                array = np.ascontiguousarray(value)
                value = f"constant{len(self.constants)}"
                self.constants.append(numpy_helper.from_array(array, value))
            names.append(value)
        output = output or f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def layers(self, config: ConfigDict, params: Any, x: str) -> None:
        """Add all layers of `config.model` after `x`, the images, and the softmax."""
        fields, side = config.model, config.augment.crop
        for part in walk(fields, side):
            kind, number = re.fullmatch(r"(\D+)(\d+)", part.name).groups()  # type: ignore[union-attr]
            if kind in ("conv", "local"):
                layer = self._convolution if kind == "conv" else self._local
                x = layer(fields, int(number) - 1, params[part.name], (x, side))
            elif kind == "fc":
                if int(number) == len(fields.layers) + 1:  # units count height, width, channels
                    x = self.add("Flatten", self.add("Transpose", x, perm=[0, 2, 3, 1]))
                x = self.add("Gemm", x, params[part.name]["kernel"], params[part.name]["bias"])
            elif kind in ("relu", "tanh"):
                x = self.add(kind.capitalize(), x)
            elif kind == "lrn":
                x = self._lrn(fields, part.output, x)
            elif kind == "spatial_norm":
                x = self._spatial_norm(fields.spatial_norm, x)
            elif kind != "dropout":
                operator = "MaxPool" if kind == "max_pool" else "AveragePool"
                window, stride = fields.pool.window, fields.pool.stride
                over = overhang(side, window, stride) if fields.ceil_mode else 0
                sides: dict[str, Any] = {"kernel_shape": [window] * 2, "strides": [stride] * 2}
                x = self.add(operator, x, pads=[0, 0, over, over], **sides)
            elif fields.dropout_scaling == "test":
                x = self.add("Mul", x, np.float32(1 - fields.dropout))
            side = part.output[0]
        self.add("Softmax", x, output="probabilities", axis=1)

    def _convolution(self, fields: ConfigDict, i: int, layer: Any, at: tuple[str, int]) -> str:
        x, side = at
        low, high = _zeros(fields, i, side)
        reads_both = i == 0 or fields.layers[i] in fields.cross_layers
        return self.add(
            "Conv",
            x,
            np.transpose(layer["kernel"], (3, 2, 0, 1)),
            layer["bias"],
            strides=[fields.strides[i]] * 2,
            pads=[low, low, high, high],
            group=1 if reads_both else fields.groups,
        )

    def _local(self, fields: ConfigDict, i: int, layer: Any, at: tuple[str, int]) -> str:
        """Add a locally connected layer: a matrix product of the windows at each position."""
        x, side = at
        (low, high), window, stride = _zeros(fields, i, side), fields.kernels[i], fields.strides[i]
        x = self.add("Transpose", x, perm=[0, 2, 3, 1])
        x = self.add("Pad", x, np.array([0, low, low, 0, 0, high, high, 0]))
        rows, columns, inputs, features = layer["kernel"].shape
        windows = []
        for corner in itertools.product(range(window), repeat=2):
            ends = np.array(corner) + [(n - 1) * stride + 1 for n in (rows, columns)]
            both = np.array([1, 2]), np.array([stride] * 2)
            windows.append(self.add("Slice", x, np.array(corner), ends, *both))
        patches = self.add("Concat", *windows, axis=3)  # the channel fastest
        kernel = np.asarray(layer["kernel"]).reshape(rows, columns, -1, window**2, features)
        kernel = kernel.swapaxes(2, 3).reshape(rows, columns, inputs, features)
        x = self.add("Einsum", patches, kernel, equation="nrci,rcio->nrco")
        return self.add("Transpose", self.add("Add", x, layer["bias"]), perm=[0, 3, 1, 2])

    def _lrn(self, fields: ConfigDict, shape: tuple[int, ...], x: str) -> str:
        lrn = fields.lrn
        constants = {"size": lrn.n, "bias": float(lrn.k), "beta": float(lrn.beta)}
        constants["alpha"] = float(lrn.alpha * lrn.n)  # which ONNX divides by n
        if fields.groups == 1 or not lrn.within_groups:
            return self.add("LRN", x, **constants)
        height, width, channels = shape
        columns = np.array([-1, channels // fields.groups, height, width])
        x = self.add("LRN", self.add("Reshape", x, columns), **constants)
        return self.add("Reshape", x, np.array([-1, channels, height, width]))

    def _spatial_norm(self, norm: ConfigDict, x: str) -> str:
        before, after = norm.n // 2, (norm.n - 1) // 2
        window: dict[str, Any] = {
            "kernel_shape": [norm.n] * 2,
            "pads": [before, before, after, after],
        }
        mean = self.add("AveragePool", self.add("Mul", x, x), count_include_pad=1, **window)
        d = self.add("Mul", mean, np.float32(norm.alpha * norm.n**2))
        d = self.add("Add", d, np.float32(norm.k))
        return self.add("Div", x, self.add("Pow", d, np.float32(norm.beta)))


def _zeros(fields: ConfigDict, i: int, side: int) -> tuple[int, int]:
    """Return how many zeros come before and after the input of layer `i`, of `side` pixels."""
    low, window, stride = fields.padding[i], fields.kernels[i], fields.strides[i]
    over = overhang(side + 2 * low, window, stride) if fields.ceil_mode else 0
    return low, low + over
