# mypy: ignore-errors
"""The kernels of the fused block, written in NVIDIA Warp, which compiles them when they run.

A thread owns CHANNELS neighbouring channels of a few columns and walks down the rows, so that each
row is read once. What the normalization needs of the channels beside its own it reads as well: they
are in the cache, and no thread waits for another. The same code runs on a GPU and on a CPU; inside
everything is float32.

Of each window the forward pass saves one word: d^-1/2 at its maximum, with the place of the maximum
(row * 3 + column) in the last four bits, where it changes the number by 2e-6 at most.
"""

import functools
from typing import Any

import warp as wp

from alexnet_jax.fused_native import (
    CHANNELS,
    Near,
    Own,
    Strip,
    larger,
    load,
    marked,
    moved,
    place_of,
    relu,
    rsqrt,
    sqrt,
    store,
    strip,
)

wp.config.log_level = wp.LOG_WARNING  # not a line for each kernel that it compiles

THREADS = 128  # of a block
# Blocks on a multiprocessor at a time: as many as have registers enough, but for a few words.
FORWARD_BLOCKS, BACKWARD_BLOCKS = 4, 3

Pairs = wp.types.vector(length=CHANNELS + 3, dtype=wp.float32)
Window = wp.types.vector(length=2 * CHANNELS + 4, dtype=wp.float32)


@wp.func
def pooled(side: int) -> int:
    return (side - 3) / 2 + 1


@wp.func
def own_sum(v: Near) -> Own:
    """Return the sums over five neighbouring channels."""
    pairs = Pairs()
    for i in range(CHANNELS + 3):
        pairs[i] = v[i] + v[i + 1]
    sums = Own()
    for i in range(CHANNELS):
        sums[i] = pairs[i] + pairs[i + 2] + v[i + 4]
    return sums


@wp.func
def normalized(x: Near, bias: Near, k: float, alpha: float):
    """Return the square of ReLU's output normalized, a^2 d^-3/2, and d^-1/2.

    Squares grow as what they are squares of: the root is taken of each window's maximum only.
    """
    squares = Near()
    for i in range(CHANNELS + 4):
        a = relu(x[i] + bias[i])
        squares[i] = a * a
    sums = own_sum(squares)
    compared = Own()
    saved = Own()
    for i in range(CHANNELS):
        r = rsqrt(k + alpha * sums[i])
        compared[i] = (squares[i + 2] * r) * (r * r)
        saved[i] = r
    return compared, saved


@wp.func
def rectified(x: Near, bias: Near, k: float, alpha: float):
    """Return ReLU's output, and 1 in place of d^-1/2."""
    compared = Own()
    saved = Own()
    for i in range(CHANNELS):
        compared[i] = relu(x[i + 2] + bias[i + 2])
        saved[i] = 1.0
    return compared, saved


@wp.func
def keep_larger(best: Own, saved: Own, new: Own, new_saved: Own, more: int):
    """Return the larger values and what is saved of them; of equal ones the first stays."""
    for i in range(CHANNELS):
        replace = larger(new[i], best[i])
        saved[i] = wp.where(replace, moved(new_saved[i], more), saved[i])
        best[i] = wp.where(replace, new[i], best[i])
    return best, saved


@wp.func
def roots(v: Own) -> Own:
    for i in range(CHANNELS):
        v[i] = sqrt(v[i])
    return v


@wp.func
def unchanged(v: Own) -> Own:
    return v


@wp.func
def with_gradient(best: Own, saved: Own) -> Own:
    """Return `saved`; the place of a window of zeros is 15: ReLU lets no gradient through."""
    for i in range(CHANNELS):
        saved[i] = wp.where(larger(best[i], 0.0), saved[i], marked(saved[i], wp.uint32(15)))
    return saved


@functools.cache
def forward(dtype: Any, lrn: bool) -> wp.Kernel:
    """Return the kernel of max_pool(lrn(relu(x + bias))), or without lrn.

    A thread computes two columns of the output, `rows` rows of each.
    """
    load_x, load_bias = load(dtype), load(wp.float32)
    store_y, store_saved = store(dtype), store(wp.float32)
    compared, output = (normalized, roots) if lrn else (rectified, unchanged)

    @wp.func
    def row_maxima(
        x: wp.array2d(dtype=dtype),
        s: Strip,
        row: int,
        column: int,
        bias: Near,
        k: float,
        alpha: float,
    ):
        """Return the maxima of three pixels in a row and of the three from the last of them on."""
        first = Own()
        second = Own()
        first_saved = Own()
        second_saved = Own()
        for i in range(5):
            pixel = row * s.width + wp.min(column + i, s.width - 1)
            new, saved = compared(load_x(x, s, pixel, 1), bias, k, alpha)
            for j in range(CHANNELS):
                saved[j] = marked(saved[j], wp.uint32(0))
            if wp.static(i == 0):
                first = new
                first_saved = saved
            elif wp.static(i < 3):
                first, first_saved = keep_larger(first, first_saved, new, saved, i)
            if wp.static(i == 2):
                second = new
                second_saved = saved
            elif wp.static(i > 2):
                second, second_saved = keep_larger(second, second_saved, new, saved, i - 2)
        return first, first_saved, second, second_saved

    @wp.kernel(
        enable_backward=False,
        grid_stride=False,
        launch_bounds=(THREADS, FORWARD_BLOCKS),
        module="unique",
    )
    def fused_forward(
        x: wp.array2d(dtype=dtype),
        bias: wp.array2d(dtype=wp.float32),
        height: int,
        width: int,
        channels: int,
        span: int,
        rows: int,
        k: float,
        alpha: float,
        y: wp.array2d(dtype=dtype),
        saved: wp.array2d(dtype=wp.float32),
    ):
        image, segment, pair, group = wp.tid()
        s = strip(image, height, width, channels, span, group)
        b = load_bias(bias, strip(0, height, width, channels, span, group), 0, 1)
        column = 4 * pair
        start = segment * rows
        stop = wp.min(start + rows, pooled(height))
        best0, saved0, best1, saved1 = row_maxima(x, s, 2 * start, column, b, k, alpha)
        for row in range(start, stop):
            new0, new_saved0, new1, new_saved1 = row_maxima(x, s, 2 * row + 1, column, b, k, alpha)
            best0, saved0 = keep_larger(best0, saved0, new0, new_saved0, 3)
            best1, saved1 = keep_larger(best1, saved1, new1, new_saved1, 3)
            new0, new_saved0, new1, new_saved1 = row_maxima(x, s, 2 * row + 2, column, b, k, alpha)
            best0, saved0 = keep_larger(best0, saved0, new0, new_saved0, 6)
            best1, saved1 = keep_larger(best1, saved1, new1, new_saved1, 6)
            at = row * pooled(width) + 2 * pair
            store_y(y, s, at, output(best0))
            store_saved(saved, s, at, with_gradient(best0, saved0))
            if 2 * pair + 1 < pooled(width):
                store_y(y, s, at + 1, output(best1))
                store_saved(saved, s, at + 1, with_gradient(best1, saved1))
            # The last row is the first of the windows below.
            best0 = new0
            saved0 = new_saved0
            best1 = new1
            saved1 = new_saved1

    return fused_forward


@wp.func
def gradients_normalized(g: Near, saved: Near) -> Window:
    """Return g d^-3/4 of the thread's own channels, and g d^-7/4 of these and those beside.

    The second has the place of the window's maximum in its last bits.
    """
    direct = Near()
    out = Window()
    for i in range(CHANNELS + 4):
        r = saved[i]
        direct[i] = g[i] * (r * sqrt(r))
        out[i + CHANNELS] = marked(direct[i] * (r * r), place_of(r))
    for i in range(CHANNELS):
        out[i] = direct[i + 2]
    return out


@wp.func
def gradients_rectified(g: Near, saved: Near) -> Window:
    out = Window()
    for i in range(CHANNELS):
        out[i] = g[i + 2]
        out[i + CHANNELS + 2] = saved[i + 2]
    return out


@wp.func_native(f"""
    for (int i = 0; i < {CHANNELS + 4}; i++) {{
        unsigned bits;
        memcpy(&bits, &window[i + {CHANNELS}], 4);
        if ((bits & 15u) == unsigned(place)) {{
            total[i + {CHANNELS}] += window[i + {CHANNELS}];
            if (i >= 2 && i < {CHANNELS + 2}) total[i - 2] += window[i - 2];
        }}
    }}
    return total;
""")
def routed(total: Window, window: Window, place: int) -> Window:
    """Return the sum of a pixel's gradients, with those of a window where it chose the pixel."""


@wp.func
def through_norm(x: Near, bias: Near, g: Window, alpha: float) -> Own:
    """Return dx_i = g_i d_i^-3/4 - 3/2 alpha a_i sum_j g_j a_j d_j^-7/4; a is ReLU's output."""
    a = Near()
    terms = Near()
    for i in range(CHANNELS + 4):
        a[i] = relu(x[i] + bias[i])
        terms[i] = g[i + CHANNELS] * a[i]
    sums = own_sum(terms)
    out = Own()
    for i in range(CHANNELS):
        out[i] = g[i] - (1.5 * alpha * a[i + 2]) * sums[i]
    return out


@wp.func
def through_relu(x: Near, bias: Near, g: Window, alpha: float) -> Own:
    out = Own()
    for i in range(CHANNELS):
        out[i] = g[i]
    return out


@functools.cache
def backward(dtype: Any, lrn: bool) -> wp.Kernel:
    """Return the kernel of the gradient of `forward`'s y with respect to x and, in parts, bias.

    A thread computes two columns, `rows` pairs of rows of them, and their sum for `db`.
    """
    load_x, load_float = load(dtype), load(wp.float32)
    store_dx, store_db = store(dtype), store(wp.float32)
    gradients, through = (
        (gradients_normalized, through_norm) if lrn else (gradients_rectified, through_relu)
    )

    @wp.func
    def window(
        g: wp.array2d(dtype=dtype),
        saved: wp.array2d(dtype=wp.float32),
        s: Strip,
        row: int,
        column: int,
    ) -> Window:
        """Return the gradients of a window; zeros if there is none at this row and column."""
        height = pooled(s.height)
        width = pooled(s.width)
        here = wp.where(row >= 0 and row < height and column >= 0 and column < width, 1, 0)
        at = row * width + column
        return gradients(load_x(g, s, at, here), load_float(saved, s, at, here))

    @wp.kernel(
        enable_backward=False,
        grid_stride=False,
        launch_bounds=(THREADS, BACKWARD_BLOCKS),
        module="unique",
    )
    def fused_backward(
        x: wp.array2d(dtype=dtype),
        bias: wp.array2d(dtype=wp.float32),
        g: wp.array2d(dtype=dtype),
        saved: wp.array2d(dtype=wp.float32),
        height: int,
        width: int,
        channels: int,
        span: int,
        rows: int,
        alpha: float,
        dx: wp.array2d(dtype=dtype),
        db: wp.array2d(dtype=wp.float32),
    ):
        image, segment, pair, group = wp.tid()
        s = strip(image, height, width, channels, span, group)
        b = load_float(bias, strip(0, height, width, channels, span, group), 0, 1)
        beside = wp.where(2 * pair + 1 < width, 1, 0)
        start = segment * rows
        stop = wp.min(start + rows, (height + 1) / 2)
        sums = Own()
        # What the first row's two pixels get from the windows that begin above it.
        this = window(g, saved, s, start - 1, pair)
        at_left = window(g, saved, s, start - 1, pair - 1)
        total = routed(routed(Window(), this, 6), at_left, 8)
        total_beside = routed(Window(), this, 7)
        for row in range(start, stop):
            # All loads come first, so that the waits overlap.
            at = 2 * row * width + 2 * pair
            below = wp.where(2 * row + 1 < height, 1, 0)
            x00 = load_x(x, s, at, 1)
            x01 = load_x(x, s, at + 1, beside)
            x10 = load_x(x, s, at + width, below)
            x11 = load_x(x, s, at + width + 1, below * beside)
            this = window(g, saved, s, row, pair)
            at_left = window(g, saved, s, row, pair - 1)

            out = through(x00, b, routed(routed(total, this, 0), at_left, 2), alpha)
            store_dx(dx, s, at, out)
            sums += out
            if beside != 0:
                out = through(x01, b, routed(total_beside, this, 1), alpha)
                store_dx(dx, s, at + 1, out)
                sums += out
            if below != 0:
                out = through(x10, b, routed(routed(Window(), this, 3), at_left, 5), alpha)
                store_dx(dx, s, at + width, out)
                sums += out
                if beside != 0:
                    out = through(x11, b, routed(Window(), this, 4), alpha)
                    store_dx(dx, s, at + width + 1, out)
                    sums += out
            total = routed(routed(Window(), this, 6), at_left, 8)
            total_beside = routed(Window(), this, 7)
        store_db(db, s, segment * ((width + 1) / 2) + pair, sums)

    return fused_backward
