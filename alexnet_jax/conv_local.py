"""The locally connected layer: a convolution with a kernel of its own at each position."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConvLocal(nn.Module):
    """`flax.linen.ConvLocal` of images (batch, H, W, C), several times as fast.

    Attributes as there, and the same parameters: `kernel` (rows, columns, C * kernel rows * kernel
    columns, features), the last of its inputs running fastest, and `bias` (rows, columns,
    features). Flax gathers the windows by a convolution with a group for each channel, which takes
    most of the layer's time; here they are slices.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int
    padding: Sequence[tuple[int, int]]
    dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the maps (batch, rows, columns, features), in `dtype`."""
        x = jnp.pad(x, [(0, 0), *self.padding, (0, 0)])
        rows, columns = (
            (side - kernel) // self.strides + 1
            for side, kernel in zip(x.shape[1:3], self.kernel_size, strict=True)
        )
        inputs = x.shape[3] * self.kernel_size[0] * self.kernel_size[1]
        shape = (rows, columns, inputs, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (rows, columns, self.features))
        x, kernel, bias = (v.astype(self.dtype) for v in (x, kernel, bias))

        last = [(n - 1) * self.strides + 1 for n in (rows, columns)]
        windows = [
            x[:, i : i + last[0] : self.strides, j : j + last[1] : self.strides]
            for i, j in product(*map(range, self.kernel_size))
        ]
        patches = jnp.concatenate(windows, axis=-1)  # the channel fastest
        kernel = kernel.reshape(rows, columns, x.shape[3], len(windows), -1).swapaxes(2, 3)
        return jnp.einsum("nrci,rcio->nrco", patches, kernel.reshape(shape)) + bias
