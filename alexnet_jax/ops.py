"""Local response normalisation and max pooling with gradients of their own.

What autodiff makes of these two is the slowest part of the net after the convolutions: on a CPU
forward and backward together take two to three times (normalisation) and about nine times
(pooling) as long. Less is kept in between, too: the input alone by the one, a byte for each
output by the other.
"""

from functools import partial, reduce
from itertools import product

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
    if n < 1:
        raise ValueError(f"local_response_norm: n must be at least 1, got {n}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"local_response_norm: x must be floating, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("local_response_norm: x must have a channel axis, got a scalar")
    return _lrn(x, k, n, alpha, beta)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn(x, k, n, alpha, beta):
    wide = _at_least_float32(x)
    _, scale = _lrn_denominator(wide, k, n, alpha, beta)
    return (wide * scale).astype(x.dtype)


def _lrn_fwd(x, k, n, alpha, beta):
    return _lrn(x, k, n, alpha, beta), x


def _lrn_bwd(k, n, alpha, beta, x, g):
    """dx_i = g_i d_i^-beta - 2 alpha beta x_i sum_{j : i in window(j)} g_j y_j / d_j."""
    wide = _at_least_float32(x)
    d, scale = _lrn_denominator(wide, k, n, alpha, beta)
    direct = _at_least_float32(g) * scale
    # i lies in the windows of channels i - (n-1)//2 to i + n//2: mirrored, if n is even.
    through_d = _window_sum(direct * wide / d, before=(n - 1) // 2, after=n // 2)
    return ((direct - 2 * alpha * beta * wide * through_d).astype(x.dtype),)


_lrn.defvjp(_lrn_fwd, _lrn_bwd)


def _lrn_denominator(x, k, n, alpha, beta):
    """Return d and d^-beta."""
    d = k + alpha * _window_sum(x * x, before=n // 2, after=(n - 1) // 2)
    # Not d**-beta: on a CPU XLA's general power takes as long as all the rest of the forward pass.
    return d, jnp.exp(-beta * jnp.log(d))


def _window_sum(v, *, before, after):
    """Return the sum of v over channels i - before to i + after, zeros beyond the ends."""
    channels = v.shape[-1]
    before, after = min(before, channels), min(after, channels)
    padded = jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(before, after)])
    # Shifted slices fuse with what follows; lax.reduce_window and a banded matrix do not.
    shifts = range(before + after + 1)
    return sum(lax.slice_in_dim(padded, i, i + channels, axis=-1) for i in shifts)


def max_pool(x: jax.Array, *, window: int = 3, stride: int = 2) -> jax.Array:
    """Return the maximum of each window x window square, without padding.

    (..., H, W, C) -> (..., (H - window) // stride + 1, (W - window) // stride + 1, C), x's dtype;
    pixels that no square reaches are ignored. With window > stride the squares overlap:
    Krizhevsky et al. 2012, section 3.4.

    The gradient of an output goes to the maximum of its window, of equal ones to the first in
    row-major order, as in XLA and PyTorch (cuda-convnet credits each of them). A NaN counts as
    larger than any number: its windows give NaN, and their gradient goes to the first NaN.

    Raises ValueError if window or stride is below 1, x has no H, W, C, or the window does not fit.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"max_pool: window {window} and stride {stride} must be at least 1")
    if x.ndim < 3:
        raise ValueError(f"max_pool: x must be (..., H, W, C), got shape {x.shape}")
    height, width = x.shape[-3:-1]
    if window > min(height, width):
        raise ValueError(f"max_pool: window {window} does not fit into {height} x {width} pixels")
    return _max_pool(x, window, stride, (height, width))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, size):
    return reduce(jnp.maximum, _window_parts(x, window, stride, size))


def _max_pool_fwd(x, window, stride, size):
    """Return y and the place in its window where each y came from, row * pitch + column."""
    y = _max_pool(x, window, stride, size)
    pitch = _pitch(window, stride)
    places = [row * pitch + column for row, column in product(range(window), repeat=2)]
    first = jnp.zeros(y.shape, np.min_scalar_type(pitch * pitch - 1))
    # Last to first, so that of several equal maxima the first is the one that stays.
    for place, part in zip(places[::-1], _window_parts(x, window, stride, size)[::-1], strict=True):
        first = jnp.where((part == y) | jnp.isnan(part), first.dtype.type(place), first)
    return y, first


def _max_pool_bwd(window, stride, size, first, g):
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
    return (dx[..., : size[0], : size[1], :].astype(g.dtype),)


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
