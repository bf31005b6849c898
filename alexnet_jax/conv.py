"""Convolution with what XLA is slow at on a CPU computed otherwise."""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Images NHWC, kernels HWIO, as XLA numbers dimensions.
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Of patches at a time, for they are to stay in the cache: 4 to 16 MB make no difference.
CACHED_BYTES = 8 * 2**20
FEW_CHANNELS = 8


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

    The gradient is the same too. On a CPU the weights' is a sum of matrix products, each over the
    patches of a few images: XLA's own takes up to four times as long (a stride, a large batch), and
    its rounding errors are ten times as large. So is the output where images have no more than
    FEW_CHANNELS, as pictures do, for which XLA's takes up to six times as long. What is dilated,
    grouped or not NHWC by HWIO is left to XLA. There is no forward-mode gradient.
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
    outputs = jax.eval_shape(plain, lhs, rhs).shape[1:3]
    windows = _Windows(rhs.shape[:2], tuple(window_strides), tuple(map(tuple, padding)), outputs)
    return _conv(lhs, rhs, plain, windows)


class _Windows(NamedTuple):
    """Where a kernel is applied to images: its height and width, and so on for the rest."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], ...]
    outputs: tuple[int, int]

    @property
    def blocks(self) -> list[int]:
        """The sides of a kernel filled up to whole blocks of stride by stride pixels."""
        return [-(-k // s) for k, s in zip(self.kernel, self.strides, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, plain, windows):
    if x.shape[-1] > FEW_CHANNELS:
        return plain(x, kernel)
    by_patches = partial(_output, windows=windows)
    return lax.platform_dependent(x, kernel, cpu=by_patches, default=plain)


def _conv_fwd(x, kernel, plain, windows):
    return _conv(x, kernel, plain, windows), (x, kernel)


def _conv_bwd(plain, windows, saved, g):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(g)

    def by_xla(x, g):
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(g)[0]

    by_patches = partial(_weight_gradient, windows=windows)
    return dx, lax.platform_dependent(x, g, cpu=by_patches, default=by_xla)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _output(x, kernel, *, windows):
    """Return the patches of x times the kernel, filled up to whole blocks as they are."""
    fill = [(0, b * s - k) for b, s, k in zip(windows.blocks, *windows[1::-1], strict=True)]
    kernel = jnp.pad(kernel, [*fill, (0, 0), (0, 0)])
    kernel = kernel.reshape(*_interleaved(windows), *kernel.shape[2:])
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(-1, kernel.shape[-1])
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def of_some(x):
        y = lax.dot(_patches(x, windows), kernel, preferred_element_type=wide)
        return y.astype(x.dtype)

    y = lax.map(of_some, _in_parts(x, windows))
    return y.reshape(-1, *windows.outputs, kernel.shape[-1])


def _weight_gradient(x, g, *, windows):
    """Return the patches of x, transposed, times g: the sum over all places and images."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    channels, features = x.shape[-1], g.shape[-1]
    x_parts = _in_parts(x, windows)
    g_parts = g.reshape(len(x_parts), -1, features)

    def add(dw, part):
        x, g = part
        return dw + lax.dot(_patches(x, windows).T, g, preferred_element_type=wide), None

    patch = jax.eval_shape(lambda x: _patches(x, windows), x).shape[-1]
    dw, _ = lax.scan(add, jnp.zeros((patch, features), wide), (x_parts, g_parts))
    blocks, strides = windows.blocks, windows.strides
    dw = dw.reshape(*blocks, *strides, channels, features).transpose(0, 2, 1, 3, 4, 5)
    dw = dw.reshape(blocks[0] * strides[0], blocks[1] * strides[1], channels, features)
    return dw[: windows.kernel[0], : windows.kernel[1]].astype(x.dtype)


def _patches(x, windows):
    """Return what the kernel sees of images at each place, a row each.

    Pixels are laid out as blocks of stride by stride pixels, their channels side by side: there
    the stride is 1, and a row holds whole blocks, in the order (block, pixel in it, channel).
    """
    blocks, strides, outputs = windows.blocks, windows.strides, windows.outputs
    sides = [o - 1 + b for o, b in zip(outputs, blocks, strict=True)]
    fill = [
        (low, side * s - size - low, 0)
        for (low, _), side, s, size in zip(
            windows.padding, sides, strides, x.shape[1:3], strict=True
        )
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *fill, (0, 0, 0)])
    x = x.reshape(-1, *_interleaved(windows, sides), x.shape[-1])
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], *sides, -1)
    x = lax.optimization_barrier(x)  # or XLA does it once for every window
    seen = [x[:, i : i + outputs[0], j : j + outputs[1]] for i, j in product(*map(range, blocks))]
    patches = jnp.concatenate(seen, axis=-1)
    return patches.reshape(-1, patches.shape[-1])


def _interleaved(windows, sides=None):
    """Return the shape of `sides` blocks of pixels, as an image has them; default: the kernel's."""
    rows, columns = sides or windows.blocks
    return rows, windows.strides[0], columns, windows.strides[1]


def _in_parts(x, windows):
    """Return images as (parts, images of each, ...), so that a part's patches stay in the cache.

    Parts are equal: of as many images as divide their number and fit, one at least.
    """
    of_one = jax.eval_shape(lambda x: _patches(x, windows), x[:1])
    most = max(1, CACHED_BYTES // (of_one.size * x.dtype.itemsize))
    some = max(n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0 and n <= most)
    return x.reshape(-1, some, *x.shape[1:])
