"""The operations with their constants and inputs, and what tests measure of each."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.ops import (
    avg_pool,
    local_response_norm,
    max_pool,
    spatial_response_norm,
)

LRN = {"k": 2.0, "n": 5, "alpha": 1e-4, "beta": 0.75}
# Every constant away from its default, so that one which is ignored shows.
OTHER_LRN = {"k": 1.3, "n": 4, "alpha": 7e-4, "beta": 0.6}
SPATIAL = {"k": 1.0, "n": 5, "alpha": 1e-3 / 25, "beta": 0.75}
WINDOWS = [(3, 2), (2, 2), (2, 3), (3, 1), (5, 3), (1, 1)]
# Relative error of one rounding to the type, with room for float32 arithmetic before it.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-10}


def activations(shape, dtype="float32", seed=0):
    """Return rectified values of the size the net has: sums of squares that outweigh k."""
    x = np.random.default_rng(seed).normal(20, 60, shape)
    return jnp.asarray(np.maximum(x, 0), dtype)


def cotangent(shape, dtype="float32", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), dtype)


def as_on_a_tpu(*operands, default, **ways):
    """Choose as lax.platform_dependent does on a TPU."""
    return ways.get("tpu", default)(*operands)


@partial(jax.jit, static_argnums=0)
def value_and_vjp(op, x, g):
    """Return op(x) and the gradient of sum(g * op(x))."""
    y, vjp = jax.vjp(op, x)
    return y, vjp(g)[0]


# Cached, so that tests of the same operation at the same shape share what is compiled.
@cache
def lrn(**constants):
    return lambda x: local_response_norm(x, **constants)


@cache
def spatial_norm(**constants):
    return lambda x: spatial_response_norm(x, **constants)


@cache
def pool(window, stride, ceil_mode=False):
    return lambda x: max_pool(x, window=window, stride=stride, ceil_mode=ceil_mode)


@cache
def mean_pool(window, stride, ceil_mode=False):
    return lambda x: avg_pool(x, window=window, stride=stride, ceil_mode=ceil_mode)


def pooled_shape(shape, window, stride, rounded=math.floor):
    *lead, height, width, channels = shape
    rows, columns = (rounded((side - window) / stride) + 1 for side in (height, width))
    return (*lead, rows, columns, channels)


def bytes_kept(op, shape):
    """Return the size of what op's forward pass keeps for the backward pass, float32 input."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(op, x)[1], x))
    return sum(array.size * array.dtype.itemsize for array in kept)


def central_differences(f, x, step):
    """Return the gradient of the scalar function f at x, in float64."""
    gradient = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        gradient[at] = (f(up) - f(down)) / (2 * step)
    return gradient
