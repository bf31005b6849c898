"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) as a Flax linen module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from alexnet_jax.config import CONV_LAYERS
from alexnet_jax.conv import conv_general_dilated
from alexnet_jax.ops import local_response_norm, max_pool


class AlexNet(nn.Module):
    """Five convolutional and three fully connected layers (sections 3.1 to 3.5 of the paper).

    conv1 and conv2 are followed by ReLU, local response normalisation and overlapping pooling,
    conv3 and conv4 by ReLU, conv5 by ReLU and pooling, fc6 and fc7 by ReLU and dropout. With the
    defaults and one column: 62,378,344 parameters, 659,272 activations.

    The attributes are the fields of `config.model` (configs/alexnet.py says what they mean, and
    differs in `dropout_scaling`) and

      dtype: the type the layers compute in. Parameters, LRN's denominators and the logits are
        float32 whatever it is.

    `groups=2` gives the paper's two columns on one device: every convolution but conv1 and those in
    `cross_layers` reads the maps of its own column only, and so does the normalisation if
    `lrn['within_groups']`, as on the paper's two devices; the fully connected layers read both.

    Outputs of fc6 and fc7 are scaled by 1 - dropout when testing if `dropout_scaling` is 'test', as
    in the paper (section 4.2), or by its inverse when training if it is 'train', as in today's
    libraries. The networks are the same but for the scale of weights and learning rates: with the
    same ones, the layer after a 'train' dropout moves four times as far in a step.

    Parameters: conv1 to conv5, fc6 to fc8, each `kernel` (HWIO, or in x out) and `bias`.
    """

    num_classes: int = 1000
    groups: int = 1
    cross_layers: tuple[str, ...] = ("conv3",)
    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    kernels: tuple[int, ...] = (11, 5, 3, 3, 3)
    strides: tuple[int, ...] = (4, 1, 1, 1, 1)
    padding: tuple[int, ...] = (0, 2, 1, 1, 1)
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    dropout_scaling: str = "train"
    lrn: Mapping[str, Any] = FrozenDict(
        layers=("conv1", "conv2"), k=2.0, n=5, alpha=1e-4, beta=0.75, within_groups=True
    )
    pool: Mapping[str, Any] = FrozenDict(layers=("conv1", "conv2", "conv5"), window=3, stride=2)
    initializer: str = "normal"
    init_std: float = 0.01
    biases: tuple[float, ...] = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    input_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, example_ids: jax.Array | None = None
    ) -> jax.Array:
        """Return the logits of `images`.

        Args:
          images: (batch, height, width, 3), RGB of 0 to 255 less the training set's mean.
          train: whether units of fc6 and fc7 are dropped; needs the 'dropout' random key.
          example_ids: (batch,) integers. Which units are dropped depends on the key and on an
            example's id alone, so that sharding a batch over devices changes nothing. Default:
            0, 1, 2, ...

        Returns:
          (batch, num_classes) float32. The maps on the way (relu1, norm1, pool1, ... relu7) are in
          the 'intermediates' collection if it is made mutable.
        """
        x = (images * self.input_scale).astype(self.dtype)
        for i, name in enumerate(CONV_LAYERS):
            x = self._conv(i, name)(x)
            x = self._note(f"relu{i + 1}", nn.relu(x))
            if name in self.lrn["layers"]:
                x = self._note(f"norm{i + 1}", self._lrn(x))
            if name in self.pool["layers"]:
                window, stride = self.pool["window"], self.pool["stride"]
                x = self._note(f"pool{i + 1}", max_pool(x, window=window, stride=stride))

        x = x.reshape(x.shape[0], -1)  # in the order height, width, channel
        for i, width in ((6, self.hidden[0]), (7, self.hidden[1])):
            x = self._note(f"relu{i}", nn.relu(self._dense(i, width)(x)))
            x = self._dropout(x, train, example_ids)
        return self._dense(8, self.num_classes)(x).astype(jnp.float32)

    def _conv(self, i: int, name: str) -> nn.Conv:
        reads_both = i == 0 or name in self.cross_layers
        return nn.Conv(
            self.features[i],
            (self.kernels[i], self.kernels[i]),
            strides=self.strides[i],
            padding=self.padding[i],
            feature_group_count=1 if reads_both else self.groups,
            dtype=self.dtype,
            kernel_init=self._kernel_init(),
            bias_init=nn.initializers.constant(self.biases[i]),
            conv_general_dilated=conv_general_dilated,
            name=name,
        )

    def _lrn(self, x: jax.Array) -> jax.Array:
        constants = {c: self.lrn[c] for c in ("k", "n", "alpha", "beta")}
        if self.groups == 1 or not self.lrn["within_groups"]:
            return local_response_norm(x, **constants)
        columns = x.reshape(*x.shape[:-1], self.groups, -1)
        return local_response_norm(columns, **constants).reshape(x.shape)

    def _dense(self, i: int, width: int) -> nn.Dense:
        return nn.Dense(
            width,
            dtype=self.dtype,
            kernel_init=self._kernel_init(),
            bias_init=nn.initializers.constant(self.biases[i - 1]),
            name=f"fc{i}",
        )

    def _dropout(self, x: jax.Array, train: bool, example_ids: jax.Array | None) -> jax.Array:
        if train and self.dropout:
            x = _drop(x, self.dropout, self.make_rng("dropout"), example_ids)
        if self.dropout_scaling == "train":
            return x / (1 - self.dropout) if train else x
        return x if train else x * (1 - self.dropout)

    def _kernel_init(self) -> nn.initializers.Initializer:
        if self.initializer == "he_normal":
            return nn.initializers.he_normal()
        return nn.initializers.normal(self.init_std)

    def _note(self, name: str, x: jax.Array) -> jax.Array:
        self.sow("intermediates", name, x)
        return x


def _drop(x: jax.Array, rate: float, key: jax.Array, example_ids: jax.Array | None) -> jax.Array:
    """Zero each unit of `x` (batch, units) with probability `rate`, each example by its own key."""
    if example_ids is None:
        example_ids = jnp.arange(x.shape[0])

    def keep(example_id: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, example_id), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(example_ids), x, 0)


def from_config(config: ConfigDict) -> AlexNet:
    """Return the network that `config.model` and `config.dtype` describe."""
    return AlexNet(**config.model.to_dict(), dtype=jnp.dtype(config.dtype))
