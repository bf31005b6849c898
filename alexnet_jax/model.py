"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) as a Flax linen module."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from alexnet_jax.conv import ConvAndBias, ConvLocal, conv_general_dilated
from alexnet_jax.fields import STAGES
from alexnet_jax.layers import wrong_length
from alexnet_jax.ops import (
    avg_pool,
    local_response_norm,
    max_pool,
    overhang,
    spatial_response_norm,
)

LRN_STAGES = ("relu", "lrn", "max_pool")


class AlexNet(nn.Module):
    """Convolutional layers, each with its `stages`, then fully connected ones.

    With the defaults the eight layers of sections 3.1 to 3.5 of the paper in one column: 62,378,344
    parameters, 659,272 activations. conv1 and conv2 are followed by ReLU, local response
    normalization and overlapping pooling, conv3 and conv4 by ReLU, conv5 by ReLU and pooling, fc6
    and fc7 by ReLU and dropout. Krizhevsky's CIFAR-10 nets are other values of the same attributes.

    The attributes are the fields of `config.model` (configs/alexnet.py says what they mean, and
    differs in `dropout_scaling`) and

      dtype: the type the layers compute in. Parameters, the denominators of the normalizations and
        the logits are float32 whatever it is.
      column_axis: where given, this is one column of two, on a device of its own (below).
      relu_pool: where given, fused.relu_pool: computes bias, ReLU, normalization and pooling of the
        layers that have these stages, in one; not where 'intermediates' is mutable.

    `groups=2` gives the paper's two columns on one device: every convolution but conv1 and those in
    `cross_layers` reads the feature maps of its own column only, and so does the normalization if
    `lrn['within_groups']`, as on the paper's two devices; the fully connected layers read both.
    With `column_axis` the name of a mapped axis of size two, the module is the column of that index
    of the same network: its parameters are the halves of each kernel's and bias's last axis, and
    what reads both columns gathers the other's half first. The logits are whole on either device.

    The hidden layers (fc6, fc7) are followed by tanh if the last convolutional one is, else by
    ReLU.

    Outputs of fc6 and fc7 are scaled by 1 - dropout when testing if `dropout_scaling` is 'test', as
    in the paper (section 4.2), or by its inverse when training if it is 'train', as in today's
    libraries. The networks are the same but for the scale of weights and learning rates: with the
    same ones, the layer after a 'train' dropout moves four times as far in a step.

    Parameters: `layers` and the fully connected ones, which are numbered after them (conv1 to
    conv5, fc6 to fc8), each `kernel` (HWIO, or in x out) and `bias`. Layers named local1, ... are
    locally connected: a kernel for each position (ConvLocal).
    """

    num_classes: int = 1000
    groups: int = 1
    cross_layers: tuple[str, ...] = ("conv3",)
    layers: tuple[str, ...] = ("conv1", "conv2", "conv3", "conv4", "conv5")
    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    kernels: tuple[int, ...] = (11, 5, 3, 3, 3)
    strides: tuple[int, ...] = (4, 1, 1, 1, 1)
    padding: tuple[int, ...] = (0, 2, 1, 1, 1)
    ceil_mode: bool = False
    stages: tuple[tuple[str, ...], ...] = (
        ("relu", "lrn", "max_pool"),
        ("relu", "lrn", "max_pool"),
        ("relu",),
        ("relu",),
        ("relu", "max_pool"),
    )
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    dropout_scaling: str = "train"
    lrn: Mapping[str, Any] = FrozenDict(k=2.0, n=5, alpha=1e-4, beta=0.75, within_groups=True)
    spatial_norm: Mapping[str, Any] = FrozenDict(k=1.0, n=5, alpha=4e-5, beta=0.75)
    pool: Mapping[str, Any] = FrozenDict(window=3, stride=2)
    initializer: str = "normal"
    init_std: float = 0.01
    init_stds: tuple[float, ...] = ()
    biases: tuple[float, ...] = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    input_scale: float = 1.0
    dtype: Any = jnp.float32
    column_axis: str | None = None
    relu_pool: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Return the logits of `images`.

        Args:
          images: (batch, height, width, 3), RGB of 0 to 255 less the training set's mean.
          train: whether units of fc6 and fc7 are dropped; needs the 'dropout' PRNG key.
          example_ids: (batch,) integers. Which units are dropped depends on the key and on an
            example's id alone, so that sharding a batch over devices changes nothing. Default:
            0, 1, 2, ...

        Returns:
          (batch, num_classes) float32. The feature maps after each stage (relu1, lrn1, max_pool1,
          ... relu7, dropout7) are in the 'intermediates' collection if it is made mutable.

        Raises:
          ValueError: an attribute does not have one value per layer, or a stage does not exist.
            config.validate checks the other attributes.
        """
        if wrong := wrong_length(self):
            name, reason = wrong
            raise ValueError(f"{name}={getattr(self, name)} {reason} (layers and hidden)")
        x = (images * self.input_scale).astype(self.dtype)
        for i, name in enumerate(self.layers):
            if i and name in self.cross_layers:
                x = self._both_columns(x)
            if self._fuses(i):
                x = self._fused(i, *self._convolution(i, name, x))
                continue
            x = self._convolution(i, name, x)
            for stage in self.stages[i]:
                x = self._note(f"{stage}{i + 1}", self._stage(stage, x))

        x = self._both_columns(x)
        x = x.reshape(x.shape[0], -1)  # in the order height, width, channel
        activation = "tanh" if "tanh" in self.stages[-1] else "relu"
        for i, width in enumerate(self.hidden, start=len(self.layers) + 1):
            x = self._note(f"{activation}{i}", self._stage(activation, self._dense(i, width, x)))
            x = self._note(f"dropout{i}", self._dropout(x, train, example_ids))
            x = self._both_columns(x)
        last = len(self.layers) + len(self.hidden) + 1
        logits = self._dense(last, self.num_classes, x)
        if self.column_axis:
            logits = _gather_for_the_same_loss(logits, self.column_axis)
        return logits.astype(jnp.float32)

    def _convolution(self, i: int, name: str, x: jax.Array) -> Any:
        """Return the layer's output; where what follows is fused, without bias, and the bias."""
        low, kernel, stride = self.padding[i], self.kernels[i], self.strides[i]
        over = [0, 0]
        if self.ceil_mode:
            over = [overhang(side + 2 * low, kernel, stride) for side in x.shape[1:3]]
        arguments: dict[str, Any] = {
            "features": self.features[i] // self._shares,
            "kernel_size": (kernel, kernel),
            "strides": stride,
            "padding": [(low, low + more) for more in over],
            "dtype": self.dtype,
            "kernel_init": self._kernel_init(i),
            "bias_init": nn.initializers.constant(self.biases[i]),
            "name": name,
        }
        if name.startswith("local"):
            return ConvLocal(**arguments)(x)
        reads_both = i == 0 or name in self.cross_layers or self.column_axis
        groups = 1 if reads_both else self.groups
        arguments |= {
            "feature_group_count": groups,
            "conv_general_dilated": conv_general_dilated,
        }
        return (ConvAndBias if self._fuses(i) else nn.Conv)(**arguments)(x)

    def _fuses(self, i: int) -> bool:
        """Return whether `relu_pool` computes what follows layer `i`."""
        if self.relu_pool is None or self.is_initializing():
            return False
        if self.ceil_mode or self.layers[i].startswith("local"):
            return False
        if self.is_mutable_collection("intermediates"):
            return False
        normalizes = (self.lrn["n"], self.lrn["beta"]) == (5, 0.75)
        return (
            (self.stages[i] == ("relu", "max_pool") or self.stages[i] == LRN_STAGES and normalizes)
            and (self.pool["window"], self.pool["stride"]) == (3, 2)
            and self.features[i] // self._shares // self._norm_columns % 8 == 0
        )

    def _fused(self, i: int, x: jax.Array, bias: jax.Array) -> jax.Array:
        assert self.relu_pool is not None
        lrn = (self.lrn["k"], self.lrn["alpha"]) if "lrn" in self.stages[i] else None
        x = self.relu_pool(x, bias, lrn=lrn, columns=self._norm_columns)
        return self._note(f"max_pool{i + 1}", x)

    def _stage(self, stage: str, x: jax.Array) -> jax.Array:
        pool = {"window": self.pool["window"], "stride": self.pool["stride"]}
        if stage == "relu":
            return nn.relu(x)
        if stage == "tanh":
            return nn.tanh(x)
        if stage == "lrn":
            return self._lrn(x)
        if stage == "spatial_norm":
            return spatial_response_norm(x, **self.spatial_norm)
        if stage == "max_pool":
            return max_pool(x, ceil_mode=self.ceil_mode, **pool)
        if stage == "avg_pool":
            return avg_pool(x, ceil_mode=self.ceil_mode, **pool)
        raise ValueError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")

    def _lrn(self, x: jax.Array) -> jax.Array:
        constants = {c: self.lrn[c] for c in ("k", "n", "alpha", "beta")}
        if self._norm_columns == 1:
            return local_response_norm(x, **constants)
        columns = x.reshape(*x.shape[:-1], self._norm_columns, -1)
        return local_response_norm(columns, **constants).reshape(x.shape)

    def _dense(self, i: int, width: int, x: jax.Array) -> jax.Array:
        return nn.Dense(
            width // self._shares,
            dtype=self.dtype,
            kernel_init=self._kernel_init(i - 1),
            bias_init=nn.initializers.constant(self.biases[i - 1]),
            name=f"fc{i}",
        )(x)

    def _dropout(self, x: jax.Array, train: bool, example_ids: jax.Array | None) -> jax.Array:
        if train and self.dropout:
            if example_ids is None:
                example_ids = jnp.arange(x.shape[0])
            units = x.shape[1] * self._shares
            kept = _kept(self.make_rng("dropout"), example_ids, units, 1 - self.dropout)
            if self.column_axis:
                own = jax.lax.axis_index(self.column_axis) * x.shape[1]
                kept = jax.lax.dynamic_slice_in_dim(kept, own, x.shape[1], axis=1)
            x = jnp.where(kept, x, 0)
        if self.dropout_scaling == "train":
            return x / (1 - self.dropout) if train else x
        return x if train else x * (1 - self.dropout)

    def _kernel_init(self, i: int) -> nn.initializers.Initializer:
        if self.initializer == "he_normal":
            return nn.initializers.he_normal()
        std = self.init_stds[i] if self.init_stds else self.init_std
        return nn.initializers.normal(std)

    @property
    def _shares(self) -> int:
        """Over how many devices each layer's outputs are divided."""
        return self.groups if self.column_axis else 1

    @property
    def _norm_columns(self) -> int:
        """Into how many parts, normalized apart, the channels on a device fall."""
        return self.groups if self.lrn["within_groups"] and not self.column_axis else 1

    def _both_columns(self, x: jax.Array) -> jax.Array:
        if self.column_axis is None:
            return x
        return jax.lax.all_gather(x, self.column_axis, axis=x.ndim - 1, tiled=True)

    def _note(self, name: str, x: jax.Array) -> jax.Array:
        self.sow("intermediates", name, x)
        return x


def _kept(key: jax.Array, example_ids: jax.Array, units: int, probability: float) -> jax.Array:
    """Return (batch, units) bool: which units each example keeps, drawn by a key of its own."""

    def one(example_id: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, example_id), probability, (units,))

    return jax.vmap(one)(example_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_for_the_same_loss(x: jax.Array, axis_name: str) -> jax.Array:
    """Gather the last axis of `x`, of which all devices then compute the same loss.

    The gradient of that one loss with respect to a device's part is its part of the gradient; the
    transpose of all_gather would add up the devices' losses as if they were different ones.
    """
    return jax.lax.all_gather(x, axis_name, axis=x.ndim - 1, tiled=True)


def _gather_fwd(x: jax.Array, axis_name: str) -> tuple[jax.Array, int]:
    return _gather_for_the_same_loss(x, axis_name), x.shape[-1]


def _gather_bwd(axis_name: str, width: int, g: jax.Array) -> tuple[jax.Array]:
    start = jax.lax.axis_index(axis_name) * width
    return (jax.lax.dynamic_slice_in_dim(g, start, width, axis=g.ndim - 1),)


_gather_for_the_same_loss.defvjp(_gather_fwd, _gather_bwd)


def from_config(
    config: ConfigDict,
    column_axis: str | None = None,
    relu_pool: Callable[..., jax.Array] | None = None,
) -> AlexNet:
    """Return the network that `config.model` and `config.dtype` describe, or a column of it."""
    return AlexNet(
        **config.model.to_dict(),
        dtype=jnp.dtype(config.dtype),
        column_axis=column_axis,
        relu_pool=relu_pool,
    )
