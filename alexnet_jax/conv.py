"""Convolution whose weight gradient is fast on a CPU, and conv1 on a GPU.

And the locally connected layer, a convolution with a kernel of its own at each position.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Images NHWC, kernels HWIO, as XLA numbers dimensions.
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Of patches at a time, so that they stay in the cache; 4 to 16 MB make no difference.
CACHED_BYTES = 8 * 2**20


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: tuple[int, int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **others: Any,
) -> jax.Array:
    """Return `lax.conv_general_dilated` of the same arguments, as flax.linen.Conv calls it.

    The gradient is the same too, but on a CPU the weights' is a sum of matrix products, each over
    the patches of a few images: at a batch of 128 XLA's own takes 1.3 to 5 times as long, at one of
    32 about as long (docs/performance.md). On a GPU a stride over few channels becomes one of 1
    over blocks of pixels; on a TPU this would be more passes over memory. Dilated or grouped
    convolutions and other layouts are left to XLA. `precision` does not affect the gradient. There
    is no forward-mode gradient.
    """

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, feature_group_count=feature_group_count, **others
        )

    dilations = [others.get(f"{side}_dilation") or (1, 1) for side in ("lhs", "rhs")]
    dilated = any(d != 1 for pair in dilations for d in pair)
    grouped = feature_group_count > 1 or others.get("batch_group_count", 1) > 1
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, others.get("dimension_numbers"))
    empty = 0 in jax.eval_shape(plain, lhs, rhs).shape + lhs.shape + rhs.shape
    if dilated or grouped or empty or layout != NHWC:
        return plain(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return _conv(lhs, rhs, plain, tuple(window_strides), tuple(map(tuple, padding)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, plain, strides, padding):
    blocks = partial(_over_blocks, plain=plain, strides=strides, padding=padding)
    return lax.platform_dependent(x, kernel, cpu=plain, tpu=plain, default=blocks)


def _conv_fwd(x, kernel, plain, strides, padding):
    return _conv(x, kernel, plain, strides, padding), (x, kernel)


def _conv_bwd(plain, strides, padding, saved, g):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(g)

    def by_xla(x, g, conv):
        return jax.linear_transpose(partial(conv, x), kernel)(g)[0]

    dots = partial(_weight_gradient, shape=kernel.shape, strides=strides, padding=padding)
    blocks = partial(_over_blocks, plain=plain, strides=strides, padding=padding)
    ways = {
        "cpu": dots,
        "tpu": partial(by_xla, conv=plain),
        "default": partial(by_xla, conv=blocks),
    }
    return dx, lax.platform_dependent(x, g, **ways)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _over_blocks(x, kernel, *, plain, strides, padding):
    """Return the convolution as it is computed on a GPU.

    Where a stride meets few channels, as in conv1, it is one of stride 1 over blocks of pixels, for
    the matrix units take channels by eights at least.
    """
    if max(strides) == 1 or x.shape[-1] >= 8:
        return plain(x, kernel)
    outputs = jax.eval_shape(plain, x, kernel).shape[1:3]
    x = _in_blocks(x, kernel.shape, strides, padding, outputs)
    return lax.conv_general_dilated(
        x, _kernel_in_blocks(kernel, strides), (1, 1), "VALID", dimension_numbers=NHWC
    )


def _weight_gradient(x, g, *, shape, strides, padding):
    """dW[i, j] = sum over images and positions of x at (i, j) of its window, times g."""
    in_blocks = partial(_kernel_in_blocks, strides=strides)
    blocks = jax.eval_shape(in_blocks, jnp.zeros(shape, x.dtype)).shape
    height, width = g.shape[1:3]
    inputs, features = math.prod(blocks[:3]), blocks[3]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    some = _images_at_a_time(x.shape[0], height * width * inputs * x.dtype.itemsize)

    def add(dw, part):
        x, g = part
        x = _in_blocks(x, shape, strides, padding, (height, width))
        x = lax.optimization_barrier(x)  # or XLA does it once for every window
        windows = [x[:, i : i + height, j : j + width] for i, j in product(*map(range, blocks[:2]))]
        patches = jnp.concatenate(windows, axis=-1).reshape(-1, inputs)
        g = g.reshape(-1, features)
        return dw + lax.dot(patches.T, g, preferred_element_type=wide), None

    whole = x.shape[0] // some * some
    parts = [v[:whole].reshape(-1, some, *v.shape[1:]) for v in (x, g)]
    # Zeros that vary, within shard_map, with what the sum will vary with.
    zero = jnp.where(False, x[0, 0, 0, 0] + g[0, 0, 0, 0], 0).astype(wide)
    dw = jnp.full((inputs, features), zero)
    dw, _ = lax.scan(add, dw, parts)
    if whole < x.shape[0]:
        dw, _ = add(dw, (x[whole:], g[whole:]))
    kernel = jnp.full(shape, zero)
    return jax.linear_transpose(in_blocks, kernel)(dw.reshape(blocks))[0].astype(x.dtype)


def _in_blocks(x, shape, strides, padding, outputs):
    """Return the images as blocks of stride by stride pixels, their channels side by side.

    A kernel of `shape` then has a stride of 1 there; what it does not reach is cut off.
    """
    wide = [o - 1 - (-k // s) for o, k, s in zip(outputs, shape[:2], strides, strict=True)]
    fill = [
        (low, blocks * s - size - low, 0)
        for (low, _), blocks, s, size in zip(padding, wide, strides, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *fill, (0, 0, 0)])
    return _side_by_side(x.reshape(-1, wide[0], strides[0], wide[1], strides[1], x.shape[3]))


def _kernel_in_blocks(kernel, strides):
    """Return the kernel for images `_in_blocks`, filled up with zeros to whole blocks."""
    fill = [(0, -k % s) for k, s in zip(kernel.shape[:2], strides, strict=True)]
    kernel = jnp.pad(kernel, [*fill, (0, 0), (0, 0)])
    (height, width), features = kernel.shape[:2], kernel.shape[3]
    kernel = jnp.moveaxis(kernel, 3, 0)  # as so many images
    blocks = (height // strides[0], strides[0], width // strides[1], strides[1])
    return jnp.moveaxis(_side_by_side(kernel.reshape(features, *blocks, -1)), 0, 3)


def _side_by_side(x):
    """(images, rows, height, columns, width, channels) -> (images, rows, columns, the rest)."""
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1)


def _images_at_a_time(batch: int, patches_bytes: int) -> int:
    """Return how many images have patches of at most CACHED_BYTES together, at least 1.

    A divisor of `batch`, so that none are left over, unless that is less than half of what fits.
    """
    most = min(batch, max(1, CACHED_BYTES // patches_bytes))
    divisor = max(n for n in range(1, most + 1) if batch % n == 0)
    return divisor if 2 * divisor >= most else most


class ConvAndBias(nn.Conv):
    """`flax.linen.Conv` that leaves adding the bias to its caller, with the same parameters."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the feature maps without the bias, and the bias, (features,) float32."""
        feature_maps = super().__call__(x)
        return feature_maps, self.param("bias", self.bias_init, (self.features,))


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
        """Return the feature maps (batch, rows, columns, features), in `dtype`."""
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
