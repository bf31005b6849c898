"""The filters of a first layer side by side, as in figure 3 of the paper."""

import numpy as np

IN_A_ROW = 16
SIDE = 44  # pixels that a filter has at least


def mosaic(kernel: np.ndarray) -> np.ndarray:
    """Return filters (height, width, 3, number) side by side, float (rows, columns, 3) of 0 to 1.

    Each is scaled to its own range, one of equal weights to grey, and enlarged by a whole number.
    """
    height, width, _, number = kernel.shape
    low, high = kernel.min((0, 1, 2)), kernel.max((0, 1, 2))
    span = np.where(high > low, high - low, 1)
    scaled = np.where(high > low, (kernel - low) / span, 0.5)
    times = max(1, -(-SIDE // max(height, width)))
    big = scaled.repeat(times, 0).repeat(times, 1)
    gap = 4
    columns = min(IN_A_ROW, number)
    rows = -(-number // columns)
    down, across = height * times + gap, width * times + gap
    image = np.ones((rows * down - gap, columns * across - gap, 3))
    for i in range(number):
        y, x = i // columns * down, i % columns * across
        image[y : y + down - gap, x : x + across - gap] = big[..., i]
    return image
