"""Normalization and pooling; local normalization and max pooling have gradients of their own.

With the gradients that autodiff gives, these two are the slowest part of the net after the
convolutions: on a CPU forward and backward together take two to three times as long
(normalization) and about nine times as long (pooling). On a CPU and a GPU less is kept for the
backward pass, too: the input alone by the one, a byte per output by the other.
"""

from functools import partial, reduce
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def local_response_norm(
    x: jax.Array, *, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divide each channel by a power of the energy of its neighbours, (..., C) -> (..., C).

    Krizhevsky et al. 2012, section 3.3, whose constants are the defaults:

        y_i = x_i * d_i^-beta,   d_i = k + alpha * sum_{j in window(i)} x_j^2

    window(i) holds the n channels from i - n//2 to i + (n-1)//2, cut at the first and the last
    channel: the paper's formula for odd n, PyTorch's and cuda-convnet's choice for even n.
    alpha multiplies the sum itself, as in the paper. Caffe, PyTorch and the authors' own
    configuration files divide it by n: to agree with a net of theirs pass alpha / n.

    x is of any floating dtype and rank; n may exceed C. Types below float32 are widened to it
    inside. The constants are Python numbers, fixed at trace time; with k = 0 an all-zero window
    gives NaN. Raises ValueError if n < 1, x is not floating or has no axis.
    """
    _check_norm("local_response_norm", x, n, axes=1)
    return _lrn(x, k, n, alpha, beta, (-1,))


def spatial_response_norm(
    x: jax.Array, *, k: float = 1.0, n: int = 5, alpha: float = 4e-5, beta: float = 0.75
) -> jax.Array:
    """Divide each pixel by a power of the energy around it in its own feature map, (..., H, W, C).

    `local_response_norm` with the n x n pixels of the same channel as the window: rows and columns
    i - n//2 to i + (n-1)//2, cut at the borders of the feature map. It follows the second layer of
    the network as the authors released it in 2012, with the defaults (alpha is their 1e-3 / 25),
    and layers of their CIFAR-10 nets. Caffe's LRN WITHIN_CHANNEL. Dtypes and errors as
    `local_response_norm`.
    """
    _check_norm("spatial_response_norm", x, n, axes=3)
    return _lrn(x, k, n, alpha, beta, (-3, -2))


def _check_norm(name, x, n, axes):
    if n < 1:
        raise ValueError(f"{name}: n must be at least 1, got {n}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: x must be floating, got {x.dtype}")
    if x.ndim < axes:
        wanted = "(..., H, W, C)" if axes == 3 else "(..., C)"
        raise ValueError(f"{name}: x must be {wanted}, got shape {x.shape}")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _lrn(x, k, n, alpha, beta, axes):
    _, scale = _lrn_denominator(x, k, n, alpha, beta, axes)
    return (_at_least_float32(x) * scale).astype(x.dtype)


def _lrn_fwd(x, k, n, alpha, beta, axes):
    return _lrn(x, k, n, alpha, beta, axes), x


def _lrn_bwd(k, n, alpha, beta, axes, x, g):
    """dx_i = g_i d_i^-beta - 2 alpha beta x_i sum_{j : i in window(j)} g_j y_j / d_j."""
    x = _again(x)
    d, scale = _lrn_denominator(x, k, n, alpha, beta, axes)
    wide, direct = _at_least_float32(x), _at_least_float32(g) * scale
    # i lies in the windows of i - (n-1)//2 to i + n//2: mirrored, if n is even.
    mirrored = {"before": (n - 1) // 2, "after": n // 2, "narrow": x.dtype != wide.dtype}
    through_d = _window_sum(direct * wide / d, axes, **mirrored)
    return ((direct - 2 * alpha * beta * wide * through_d).astype(x.dtype),)


_lrn.defvjp(_lrn_fwd, _lrn_bwd)


def _lrn_denominator(x, k, n, alpha, beta, axes):
    """Return d and d^-beta."""
    wide = _at_least_float32(x)
    window = {"before": n // 2, "after": (n - 1) // 2, "narrow": x.dtype != wide.dtype}
    d = k + alpha * _window_sum(wide * wide, axes, **window)

    # Not d**-beta: on a CPU XLA's general power takes as long as all the rest of the forward pass.
    def power(d):
        return jnp.exp(-beta * jnp.log(d))

    def by_roots(d):
        root = lax.rsqrt(d)
        return root * lax.sqrt(root)

    return d, lax.platform_dependent(d, cpu=power, default=by_roots if beta == 0.75 else power)


def _again(x):
    """Return x, and on a GPU let d be computed from it again.

    XLA would keep d from the forward pass, in float32: twice the bytes of x in bfloat16. On a TPU
    that is still less than the passes over memory to compute it again.
    """

    def unchanged(x):
        return x

    return lax.platform_dependent(x, cpu=unchanged, tpu=unchanged, default=lax.optimization_barrier)


def _window_sum(v, axes, *, before, after, narrow):
    """Return the sum of v over i - before to i + after on each of axes, zeros beyond the ends.

    On a TPU shifted channels would be separate passes over memory. A matrix product with a band of
    ones is one, and takes its neighbours in. `narrow` says that v comes from, or goes to, a type
    below float32: then three passes of the matrix unit do, exactly so for squares of bfloat16.
    """
    shifted = partial(_shifted_sum, axes=axes, before=before, after=after)
    if axes != (-1,):
        return shifted(v)
    precision = lax.Precision.HIGH if narrow else lax.Precision.HIGHEST
    banded = partial(_banded_sum, before=before, after=after, precision=precision)
    return lax.platform_dependent(v, tpu=banded, default=shifted)


def _banded_sum(v, *, before, after, precision):
    channel = np.arange(v.shape[-1])
    offset = channel[:, None] - channel
    band = jnp.asarray((-before <= offset) & (offset <= after), v.dtype)
    return jnp.matmul(v, band, precision=precision)


def _shifted_sum(v, *, axes, before, after):
    for axis in axes:
        size = v.shape[axis]
        low, high = min(before, size), min(after, size)
        border = [(0, 0)] * v.ndim
        border[axis] = (low, high)
        padded = jnp.pad(v, border)
        # On CPUs and GPUs these fuse with what follows; lax.reduce_window and a band do not.
        shifts = range(low + high + 1)
        v = sum(lax.slice_in_dim(padded, i, i + size, axis=axis) for i in shifts)
    return v


def max_pool(
    x: jax.Array, *, window: int = 3, stride: int = 2, ceil_mode: bool = False
) -> jax.Array:
    """Return the maximum of each window x window square, without padding.

    (..., H, W, C) -> (..., (H - window) // stride + 1, (W - window) // stride + 1, C), x's dtype;
    pixels that no square reaches are ignored. With window > stride the squares overlap:
    Krizhevsky et al. 2012, section 3.4. With `ceil_mode` the sizes are rounded up, as in
    cuda-convnet: the last squares overhang at the bottom and the right.

    The gradient of an output goes to the maximum of its window, of equal ones to the first in
    row-major order, as in XLA and PyTorch (cuda-convnet credits each of them). A NaN counts as
    larger than any number: its windows give NaN, and their gradient goes to the first NaN (on a TPU
    to any pixel of the window).

    Raises ValueError if window or stride is below 1, x has no H, W, C, the window does not fit, or
    with `ceil_mode` the stride is larger than it (a square could then lie wholly outside).
    """
    _check_pool("max_pool", x, window, stride, ceil_mode)
    height, width = x.shape[-3:-1]
    if ceil_mode:
        border = [(0, overhang(side, window, stride)) for side in (height, width)]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*border, (0, 0)], constant_values=-jnp.inf)
        height, width = x.shape[-3:-1]
    return _max_pool(x, window, stride, (height, width))


def avg_pool(
    x: jax.Array, *, window: int = 3, stride: int = 2, ceil_mode: bool = False
) -> jax.Array:
    """Return the mean of each window x window square of `x`, (..., H, W, C), without padding.

    Sizes, dtype and errors as `max_pool`; with `ceil_mode` what overhangs does not count in the
    mean, as in cuda-convnet. Types below float32 are widened to it inside.
    """
    _check_pool("avg_pool", x, window, stride, ceil_mode)
    border = [(0, 0), (0, 0)]
    if ceil_mode:
        border = [(0, overhang(side, window, stride)) for side in x.shape[-3:-1]]
    square = (window, window)
    wide = _at_least_float32(x).reshape(-1, *x.shape[-3:])
    mean = nn.avg_pool(wide, square, (stride, stride), border, count_include_pad=False)
    return mean.reshape(*x.shape[:-3], *mean.shape[1:]).astype(x.dtype)


def _check_pool(name, x, window, stride, ceil_mode):
    if window < 1 or stride < 1:
        raise ValueError(f"{name}: window {window} and stride {stride} must be at least 1")
    if x.ndim < 3:
        raise ValueError(f"{name}: x must be (..., H, W, C), got shape {x.shape}")
    height, width = x.shape[-3:-1]
    if window > min(height, width):
        raise ValueError(f"{name}: window {window} does not fit into {height} x {width} pixels")
    if ceil_mode and stride > window:
        raise ValueError(f"{name}: ceil_mode needs stride {stride} <= window {window}")


def overhang(side: int, window: int, stride: int) -> int:
    """Return by how many pixels the last window overhangs where the output's size is rounded up."""
    return (window - side) % stride


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, size):
    def of_parts(x):
        return reduce(jnp.maximum, _window_parts(x, window, stride, size))

    whole = partial(_max_pool_of_xla, window=window, stride=stride)
    return lax.platform_dependent(x, tpu=whole, default=of_parts)


def _max_pool_of_xla(x, window, stride):
    """Return the pooling that a TPU has instructions for, with the gradient."""
    lead = (1,) * (x.ndim - 3)
    sizes, strides = (*lead, window, window, 1), (*lead, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, "VALID")


def _max_pool_fwd(x, window, stride, size):
    """Return y, and x and the place in its window where each y came from, row * pitch + column.

    The backward pass reads x on a TPU and the places elsewhere; what is not read is not kept.
    """
    y = _max_pool(x, window, stride, size)
    pitch = _pitch(window, stride)
    places = [row * pitch + column for row, column in product(range(window), repeat=2)]
    first = jnp.zeros(y.shape, np.min_scalar_type(pitch * pitch - 1))
    # Last to first, so that of several equal maxima the first is the one that stays.
    for place, part in zip(places[::-1], _window_parts(x, window, stride, size)[::-1], strict=True):
        first = jnp.where((part == y) | jnp.isnan(part), first.dtype.type(place), first)
    return y, (x, first)


def _max_pool_bwd(window, stride, size, saved, g):
    def of_places(x, first, g):
        return _max_pool_gradient(first, g, window, stride, size)

    def of_xla(x, first, g):
        whole = partial(_max_pool_of_xla, window=window, stride=stride)
        return jax.vjp(whole, x)[1](g)[0]

    return (lax.platform_dependent(*saved, g, tpu=of_xla, default=of_places),)


def _max_pool_gradient(first, g, window, stride, size):
    """Let each pixel look up which of the windows over it chose it: no scatter.

    Pixels are laid out as blocks of stride by stride, one at each window's upper left corner. The
    window a blocks up and b to the left has pixel (r, c) of a block at (r + a stride,
    c + b stride), so each (a, b) is one dense pass over all pixels.
    """
    pitch = _pitch(window, stride)
    reach = pitch // stride
    down, right = (-(-s // stride) for s in size)
    # Windows that do not exist, before the first and after the last, have no gradient to give.
    border = [(0, 0)] * (g.ndim - 3)
    border += [(reach - 1, down - g.shape[-3]), (reach - 1, right - g.shape[-2]), (0, 0)]
    first = jnp.pad(first, border)
    g_wide = jnp.pad(_at_least_float32(g), border)

    def seen_from_blocks(v, a, b):
        up, left = reach - 1 - a, reach - 1 - b
        return v[..., up : up + down, None, left : left + right, None, :]

    in_block = np.arange(stride)[:, None, None, None] * pitch + np.arange(stride)[:, None]
    dx = jnp.zeros((), g_wide.dtype)
    for a, b in product(range(reach), repeat=2):
        place = (in_block + stride * (a * pitch + b)).astype(first.dtype)
        chosen = seen_from_blocks(first, a, b) == place
        dx += jnp.where(chosen, seen_from_blocks(g_wide, a, b), 0)
    dx = dx.reshape(*g.shape[:-3], down * stride, right * stride, g.shape[-1])
    return dx[..., : size[0], : size[1], :].astype(g.dtype)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def _pitch(window, stride):
    """Return window rounded up to whole blocks: a pixel beside the window has no place in it."""
    return -(-window // stride) * stride


def _window_parts(x, window, stride, size):
    """Return window^2 arrays: what each window has at (0, 0), (0, 1), ... in row-major order."""
    height, width = ((s - window) // stride * stride + 1 for s in size)
    rows = [lax.slice_in_dim(x, r, r + height, stride, axis=-3) for r in range(window)]
    return [
        lax.slice_in_dim(row, c, c + width, stride, axis=-2) for row in rows for c in range(window)
    ]


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
