"""The operations of alexnet_jax.ops in float64 NumPy, written from the formulas.

Plain loops over the definition, independent of JAX. Each gradient is the sum over outputs of g
times the derivative of that output: no mirrored windows, no gathering.
"""

import numpy as np


def local_response_norm(x, k, n, alpha, beta):
    """Return y, y_i = x_i d_i^-beta, over the last axis."""
    x = np.asarray(x, np.float64)
    return x * _denominators(x, k, n, alpha) ** -beta


def local_response_norm_gradient(x, g, k, n, alpha, beta):
    """Return the gradient of sum(g * y) with respect to x.

    dy_j/dx_i = [i = j] d_j^-beta - 2 alpha beta x_i x_j d_j^(-beta-1) for i in window(j).
    """
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    d = _denominators(x, k, n, alpha)
    dx = np.zeros_like(x)
    for j in range(x.shape[-1]):
        dx[..., j] += g[..., j] * d[..., j] ** -beta
        for i in _channels_of_window(j, n, x.shape[-1]):
            slope = -2 * alpha * beta * x[..., i] * x[..., j] * d[..., j] ** (-beta - 1)
            dx[..., i] += g[..., j] * slope
    return dx


def _denominators(x, k, n, alpha):
    d = np.full_like(x, k)
    for i in range(x.shape[-1]):
        for j in _channels_of_window(i, n, x.shape[-1]):
            d[..., i] += alpha * x[..., j] ** 2
    return d


def _channels_of_window(i, n, channels):
    """Return the n channels i - n//2, i - n//2 + 1, ..., less those that do not exist."""
    return [j for j in range(channels) if 0 <= j - (i - n // 2) < n]


def max_pool(x, window, stride):
    """Return the maximum of each window of x, (..., H, W, C)."""
    x = np.asarray(x, np.float64)
    height, width = x.shape[-3:-1]
    rows = range(0, height - window + 1, stride)
    columns = range(0, width - window + 1, stride)
    y = np.empty(x.shape[:-3] + (len(rows), len(columns), x.shape[-1]))
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            y[..., r, c, :] = x[..., row : row + window, column : column + window, :].max((-3, -2))
    return y


def max_pool_gradient(x, g, window, stride):
    """Return the gradient of sum(g * y) with respect to x, ties to the first in row-major order."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    dx = np.zeros_like(x)
    for *lead, r, c, channel in np.ndindex(g.shape):
        row, column = r * stride, c * stride
        square = x[(*lead, slice(row, row + window), slice(column, column + window), channel)]
        down, right = np.unravel_index(np.argmax(square), square.shape)
        dx[(*lead, row + down, column + right, channel)] += g[(*lead, r, c, channel)]
    return dx


def conv(x, kernel, *, stride, padding):
    """y[n, i, j, o] = sum_{a, b, c} x[n, i s + a - p, j s + b - p, c] kernel[a, b, c, o]."""
    return sum(
        np.einsum("nijc,co->nijo", part, kernel[a, b])
        for (a, b), part in _conv_parts(x, kernel.shape[:2], stride, padding).items()
    )


def conv_gradients(x, kernel, g, *, stride, padding):
    """Return the gradients of sum(g * conv(x, kernel)) with respect to x and kernel."""
    dkernel = np.zeros(kernel.shape)
    places = np.arange(x.size).reshape(x.shape)
    dx = np.zeros(x.size + 1)  # the last for the padding
    parts = _conv_parts(x, kernel.shape[:2], stride, padding)
    where = _conv_parts(places, kernel.shape[:2], stride, padding, fill=x.size)
    for (a, b), part in parts.items():
        dkernel[a, b] = np.einsum("nijc,nijo->co", part, g)
        np.add.at(dx, where[a, b], np.einsum("nijo,co->nijc", g, kernel[a, b]))
    return dx[:-1].reshape(x.shape), dkernel


def _conv_parts(x, window, stride, padding, fill=0):
    """Return {(a, b): what each window has at (a, b)}."""
    ring = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    x = np.pad(x, ring, constant_values=fill)
    rows, columns = ((s - w) // stride + 1 for s, w in zip(x.shape[1:3], window, strict=True))
    return {
        (a, b): x[:, a : a + rows * stride : stride, b : b + columns * stride : stride][
            :, :rows, :columns
        ]
        for a in range(window[0])
        for b in range(window[1])
    }
