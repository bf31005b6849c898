"""The layer table: what each layer puts out, how many parameters and multiply-adds it has."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib

HEADER = ("layer", "output", "parameters", "multiply-adds", "activations")


def summary(config: ConfigDict) -> str:
    """Return the table as text; nothing is computed but shapes.

    Outputs are height x width x channels of one image. Activations are counted after the
    convolutional and fully connected layers, as the paper does (section 3.5); multiply-adds are
    those of their kernels.
    """
    model = model_lib.from_config(config)
    crop = config.augment.crop
    images = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
    _, variables = jax.eval_shape(
        lambda images: model.init_with_output(
            jax.random.key(0),
            images,
            capture_intermediates=True,
            mutable=["params", "intermediates"],
        ),
        images,
    )
    captured = variables["intermediates"]
    maps = {"input": (crop, crop, 3)}
    for i, layer in enumerate(config_lib.layer_names(config.model)):
        maps[layer] = captured[layer]["__call__"][0].shape[1:]
        stages = config.model.stages[i] if i < len(config.model.stages) else ()
        for stage in stages:
            if stage != "relu":
                maps[f"{stage}{i + 1}"] = captured[f"{stage}{i + 1}"][0].shape[1:]

    rows, totals = [], [0, 0, 0]
    for layer, shape in maps.items():
        counts = [0, 0, 0]
        if layer in variables["params"]:
            kernel, bias = (variables["params"][layer][p].shape for p in ("kernel", "bias"))
            # Each element of a shared kernel serves every position of the output once.
            positions = 1 if layer.startswith("local") else math.prod(shape[:-1])
            counts = [
                math.prod(kernel) + math.prod(bias),
                math.prod(kernel) * positions,
                math.prod(shape),
            ]
            totals = [t + c for t, c in zip(totals, counts, strict=True)]
        rows.append((layer, "x".join(map(str, shape)), *(f"{c:,}" if c else "" for c in counts)))
    rows.append(("total", "", *(f"{t:,}" for t in totals)))

    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [HEADER, *rows]
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
