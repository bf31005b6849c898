"""Convolution whose weight gradient is fast on a CPU."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Images NHWC, kernels HWIO, as XLA numbers dimensions.
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Of patches at a time, for they are to stay in the cache: 4 to 16 MB make no difference.
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
    the patches of a few images: XLA's own takes up to four times as long (a stride, a large batch),
    and its rounding errors are ten times as large. What is dilated, grouped or not NHWC by HWIO is
    left to XLA. There is no forward-mode gradient.
    """

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, feature_group_count=feature_group_count, **others
        )

    dilations = [others.get(f"{side}_dilation") or (1, 1) for side in ("lhs", "rhs")]
    dilated = any(d != 1 for pair in dilations for d in pair)
    grouped = feature_group_count > 1 or others.get("batch_group_count", 1) > 1
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, others.get("dimension_numbers"))
    if dilated or grouped or layout != NHWC:
        return plain(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return _conv(lhs, rhs, plain, tuple(window_strides), tuple(map(tuple, padding)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, plain, strides, padding):
    return plain(x, kernel)


def _conv_fwd(x, kernel, plain, strides, padding):
    return plain(x, kernel), (x, kernel)


def _conv_bwd(plain, strides, padding, saved, g):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(g)

    def by_xla(x, g):
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(g)[0]

    dots = partial(_weight_gradient, shape=kernel.shape, strides=strides, padding=padding)
    return dx, lax.platform_dependent(x, g, cpu=dots, default=by_xla)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _weight_gradient(x, g, *, shape, strides, padding):
    """dW[i, j] = sum over images and positions of x at (i, j) of its window, times g.

    Pixels are laid out as blocks of stride by stride pixels, their channels side by side: there
    the stride is 1 and the kernel, filled up to whole blocks, is `blocks` wide.
    """
    channels, features = shape[2:]
    blocks = [-(-k // s) for k, s in zip(shape[:2], strides, strict=True)]
    outputs = g.shape[1:3]
    sides = [o - 1 + b for o, b in zip(outputs, blocks, strict=True)]
    fill = [
        (low, side * s - size - low, 0)
        for (low, _), side, s, size in zip(padding, sides, strides, x.shape[1:3], strict=True)
    ]
    block = strides[0] * strides[1] * channels
    inputs = blocks[0] * blocks[1] * block
    wide = jnp.promote_types(x.dtype, jnp.float32)
    some = _pictures_at_a_time(x.shape[0], outputs[0] * outputs[1] * inputs * x.dtype.itemsize)

    def add(dw, part):
        x, g = part
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *fill, (0, 0, 0)])
        x = x.reshape(some, sides[0], strides[0], sides[1], strides[1], channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(some, *sides, block)
        x = lax.optimization_barrier(x)  # or XLA does it once for every window
        windows = [
            x[:, i : i + outputs[0], j : j + outputs[1]] for i, j in product(*map(range, blocks))
        ]
        patches = jnp.concatenate(windows, axis=-1).reshape(-1, inputs)
        g = g.reshape(-1, features)
        return dw + lax.dot(patches.T, g, preferred_element_type=wide), None

    parts = [v.reshape(-1, some, *v.shape[1:]) for v in (x, g)]
    dw, _ = lax.scan(add, jnp.zeros((inputs, features), wide), parts)
    dw = dw.reshape(*blocks, *strides, channels, features).transpose(0, 2, 1, 3, 4, 5)
    dw = dw.reshape(blocks[0] * strides[0], blocks[1] * strides[1], channels, features)
    return dw[: shape[0], : shape[1]].astype(x.dtype)


def _pictures_at_a_time(batch: int, patches_bytes: int) -> int:
    """Return the largest divisor of `batch` whose patches are within CACHED_BYTES, 1 at least."""
    most = max(1, CACHED_BYTES // patches_bytes)
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)
