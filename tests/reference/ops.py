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


def spatial_response_norm(x, k, n, alpha, beta):
    """Return y, y_p = x_p d_p^-beta, over the pixels p of each map of x, (..., H, W, C)."""
    x = np.asarray(x, np.float64)
    return x * _spatial_denominators(x, k, n, alpha) ** -beta


def spatial_response_norm_gradient(x, g, k, n, alpha, beta):
    """Return the gradient of sum(g * y) with respect to x.

    dy_q/dx_p = [p = q] d_q^-beta - 2 alpha beta x_p x_q d_q^(-beta-1) for p in window(q).
    """
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    d = _spatial_denominators(x, k, n, alpha)
    dx = np.zeros_like(x)
    for r, c in np.ndindex(x.shape[-3:-1]):
        of_window = -2 * alpha * beta * (g * x * d ** (-beta - 1))[..., r, c, :]
        dx[..., r, c, :] += (g * d**-beta)[..., r, c, :]
        for row, column in _pixels_of_window(r, c, n, x.shape):
            dx[..., row, column, :] += of_window * x[..., row, column, :]
    return dx


def _spatial_denominators(x, k, n, alpha):
    d = np.full_like(x, k)
    for r, c in np.ndindex(x.shape[-3:-1]):
        for row, column in _pixels_of_window(r, c, n, x.shape):
            d[..., r, c, :] += alpha * x[..., row, column, :] ** 2
    return d


def _pixels_of_window(r, c, n, shape):
    """Return the n x n pixels from (r - n//2, c - n//2) on, less those that do not exist."""
    return [
        (row, column)
        for row, column in np.ndindex(shape[-3:-1])
        if 0 <= row - (r - n // 2) < n and 0 <= column - (c - n // 2) < n
    ]


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


def overhanging_max_pool(x, window, stride):
    """Return `max_pool` with as many windows as reach a pixel that no earlier one does.

    A slice ends where the map ends, so that a window which overhangs has the pixels that exist.
    `max_pool_gradient` is this one's too: what it reads of x follows from the shape of g.
    """
    x = np.asarray(x, np.float64)
    squares = _overhanging_squares(x, window, stride)
    return _in_rows({place: square.max((-3, -2)) for place, square in squares.items()})


def avg_pool(x, window, stride, ceil_mode=False):
    """Return the mean of each window of x, (..., H, W, C), over the pixels that exist."""
    x = np.asarray(x, np.float64)
    squares = _overhanging_squares(x, window, stride)
    if not ceil_mode:
        whole = (window, window)
        squares = {at: square for at, square in squares.items() if square.shape[-3:-1] == whole}
    return _in_rows({place: square.mean((-3, -2)) for place, square in squares.items()})


def avg_pool_gradient(x, g, window, stride):
    """Return the gradient of sum(g * y): each pixel gets a like share of each of its windows' g."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    dx = np.zeros_like(x)
    for r, c in np.ndindex(g.shape[-3:-1]):
        rows, columns = (slice(i * stride, i * stride + window) for i in (r, c))
        pixels = dx[..., rows, columns, :]  # a view
        pixels += g[..., r : r + 1, c : c + 1, :] / (pixels.shape[-3] * pixels.shape[-2])
    return dx


def _overhanging_squares(x, window, stride):
    """Return {(r, c): the pixels of window (r, c)}, until the windows have reached the ends."""

    def starts(side):
        found = [0]
        while found[-1] + window < side:
            found.append(found[-1] + stride)
        return list(enumerate(found))

    height, width = x.shape[-3:-1]
    return {
        (r, c): x[..., row : row + window, column : column + window, :]
        for r, row in starts(height)
        for c, column in starts(width)
    }


def _in_rows(pixels):
    """Return {(r, c): (..., C)} as an array (..., rows, columns, C)."""
    rows, columns = (range(1 + max(place)) for place in zip(*pixels, strict=True))
    return np.stack([np.stack([pixels[r, c] for c in columns], -2) for r in rows], -3)


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
