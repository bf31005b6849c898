"""Weights from outside a run: which layers of a network they fit, and a state that begins there."""

import dataclasses
import os
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.exchange import caffe
from alexnet_jax.exchange.layout import Params, Weights, of_torchvision
from alexnet_jax.fields import expanded, shown
from alexnet_jax.host import regular
from alexnet_jax.rundir import restoring, weights_file
from alexnet_jax.state import TrainState, abstract_state


def load(
    path: str | os.PathLike[str],
    config: ConfigDict,
    mean: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Return the variables of the network of `config` from `path`, for `model.apply`.

    Args:
      path: a run directory (its best checkpoint), a checkpoint directory such as
        RUN/checkpoints/1000, a file of --mode=export --format=safetensors, a .caffemodel, or
        torchvision's alexnet as safetensors.
      config: of the network, which `alexnet_jax.model.from_config` makes: for Caffe and torchvision
        one of configs/caffe_alexnet.py, caffenet.py and torchvision_alexnet.py.
      mean: the mean image of a .caffemodel, a .binaryproto; by default its mean in each channel.

    Returns:
      'params' and 'statistics' as from `alexnet_jax.restore`: float32 images of 0 to 255 less
      `variables['statistics']['mean_image']` are what the network takes.

    Raises:
      InputError: a file cannot be read, or a layer is missing there or has another shape.
    """
    config_lib.validate(config)
    weights = _read("path", os.fspath(path), config)
    if mean is not None:
        weights = weights._replace(mean_image=caffe.read_mean(pathlib.Path(mean)))
    wanted = abstract_state(config).params
    for name, layer in wanted.items():
        if _shapes(weights.params.get(name)) != _shapes(layer):
            raise InputError(f"{path} is of another network: {_difference(name, weights, wanted)}")
    size = config.dataset.image_size
    if weights.mean_image.shape != (size, size, 3):
        raise InputError(
            f"{mean or path}: the mean image is of shape {weights.mean_image.shape}, and"
            f" config.dataset.image_size={size}"
        )
    params = jax.tree.map(jnp.asarray, {name: weights.params[name] for name in wanted})
    return {"params": params, "statistics": {"mean_image": jnp.asarray(weights.mean_image)}}


def check(config: ConfigDict) -> None:
    """Raise InputError unless `config.init_from` can be read and has a layer that fits."""
    _fitting(abstract_state(config).params, config)


def initialised(state: TrainState, config: ConfigDict) -> TrainState:
    """Return the `state` before the first step with what fits of `config.init_from`.

    These are the layers whose shapes are the same, and the mean image if it has the size of this
    run's: the network begins as the function that it was. All else stays, and the velocity is 0.
    Process 0 names on stderr what is loaded and what is not. Raises as `check`.
    """
    weights, names = _fitting(state.params, config)
    taken = {name: jax.tree.map(jnp.asarray, weights.params[name]) for name in names}
    state = dataclasses.replace(state, params={**state.params, **taken})
    same_size = weights.mean_image.shape == state.mean_image.shape
    if same_size:
        state = dataclasses.replace(state, mean_image=jnp.asarray(weights.mean_image))
    if jax.process_index() == 0:
        mean = ["the mean image"] if same_size else []
        print(f"init_from={config.init_from}: loaded {', '.join(names + mean)}", file=sys.stderr)
        others = [_difference(n, weights, state.params) for n in state.params if n not in names]
        others += [] if same_size else ["the mean image (another size)"]
        if others:
            print(f"init_from={config.init_from}: initialised {', '.join(others)}", file=sys.stderr)
        _warn_of_another_function(weights, config)
    return state


def _fitting(wanted: Params, config: ConfigDict) -> tuple[Weights, list[str]]:
    """Return what `config.init_from` holds, and the names of its layers that fit into `wanted`."""
    weights = _read("config.init_from", config.init_from, config)
    names = [n for n in wanted if _shapes(weights.params.get(n)) == _shapes(wanted[n])]
    if not names:
        differences = ", ".join(_difference(name, weights, wanted) for name in wanted)
        raise InputError(
            f"config.init_from={config.init_from}: no layer fits: {differences[:500]}; take the"
            " config.model that it was trained with"
        )
    return weights, names


def _warn_of_another_function(weights: Weights, config: ConfigDict) -> None:
    """Print where `config.model` differs from that of the weights in what shapes do not show."""
    if weights.config is None:
        return
    was, now = (
        dict(config_lib.flatten(weights.config.model)),
        dict(config_lib.flatten(config.model)),
    )
    silent = ["num_classes", "biases", "initializer", "init_std", "init_stds"]
    if config.model.dropout_scaling == "train":  # else the outputs are scaled by 1 - dropout
        silent.append("dropout")
    changed = [
        f"model.{name}={shown(was[name])} (now {shown(now[name])})"
        for name in now
        if name not in silent and was[name] != now[name]
    ]
    if changed:
        print(
            f"warning: init_from={config.init_from} was trained with {', '.join(changed)}",
            file=sys.stderr,
        )


def _read(field: str, text: str, config: ConfigDict) -> Weights:
    """Return the weights at `text`, the path in `field`, laid out for `config`."""
    path = expanded(field, text)
    absolute = path.absolute()
    if re.fullmatch("[0-9]+", absolute.name) and absolute.parent.name == "checkpoints":
        weights = _of_run(absolute.parent.parent, int(absolute.name))
    elif path.is_dir():
        weights = _of_run(absolute.parent if absolute.name == "checkpoints" else path)
    elif path.exists():
        weights = _of_file(path, config)
    else:
        raise InputError(
            f"{field}={text} does not exist; give a run directory, a checkpoint or a weights file"
        )
    for name, layer in weights.params.items():
        for part, array in layer.items():
            if not np.isfinite(array).all():
                raise InputError(f"{text}: {name}/{part} is not finite; take another checkpoint")
    return weights


def _of_file(path: pathlib.Path, config: ConfigDict) -> Weights:
    try:
        with regular(path).open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    weights_file.refuse_pickle(path, head)
    if head[8:] != b"{":
        return caffe.read_model(path, config)
    metadata, arrays = weights_file.read_safetensors(path)
    if metadata.get("format") == weights_file.FORMAT:
        return _of_run(path)
    return of_torchvision(arrays, config)


def _of_run(workdir: pathlib.Path, step: Any = "best") -> Weights:
    config, state, _ = restoring.load(workdir, step)
    return Weights(jax.tree.map(np.asarray, state.params), np.asarray(state.mean_image), config)


def _shapes(layer: dict[str, Any] | None) -> dict[str, tuple[int, ...]]:
    return {} if layer is None else {part: tuple(array.shape) for part, array in layer.items()}


def _difference(name: str, weights: Weights, wanted: Params) -> str:
    there = _shapes(weights.params.get(name)).get("kernel", "missing")
    return f"{name} (there {there}, in config.model {_shapes(wanted[name])['kernel']})"
