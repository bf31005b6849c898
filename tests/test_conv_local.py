"""The locally connected layer, compared with sums in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.conv import ConvLocal
from tests.agreement import agree

# height, width, kernel rows and columns, stride, padding
GEOMETRIES = [
    (6, 6, (3, 3), 1, ((1, 1), (1, 1))),
    (7, 5, (3, 2), 2, ((1, 0), (0, 2))),
    (4, 4, (4, 4), 1, ((0, 0), (0, 0))),
]


def _layer(kernel, stride, padding, cls=ConvLocal, dtype=jnp.float32):
    return cls(
        4,
        kernel_size=kernel,
        strides=stride,
        padding=padding,
        dtype=dtype,
        kernel_init=nn.initializers.normal(1.0),
        bias_init=nn.initializers.normal(1.0),
    )


def _reference(x, kernel, bias, g, size, stride, padding):
    """Return outputs, and the gradients of x, kernel and bias, window by window."""
    channels = x.shape[3]
    padded = np.pad(x, [(0, 0), *padding, (0, 0)])
    y, d_padded, d_kernel = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(*kernel.shape[:2]):
        at = np.s_[:, i * stride : i * stride + size[0], j * stride : j * stride + size[1]]
        own = kernel[i, j].reshape(channels, *size, -1)
        y[:, i, j] = np.einsum("nabc,cabo->no", padded[at], own) + bias[i, j]
        d_padded[at] += np.einsum("no,cabo->nabc", g[:, i, j], own)
        d_own = np.einsum("nabc,no->cabo", padded[at], g[:, i, j])
        d_kernel[i, j] = d_own.reshape(kernel.shape[2:])
    (top, _), (left, _) = padding
    dx = d_padded[:, top : top + x.shape[1], left : left + x.shape[2]]
    return y, dx, d_kernel, g.sum(axis=0)


@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), GEOMETRIES)
def test_value_and_gradients_agree_with_the_reference(height, width, size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 3))
    layer = _layer(size, stride, padding)
    params = layer.init(jax.random.key(0), jnp.float32(x))["params"]
    y, vjp = jax.vjp(lambda x, params: layer.apply({"params": params}, x), jnp.float32(x), params)
    g = rng.normal(size=y.shape)
    dx, gradients = vjp(jnp.float32(g))
    kernel, bias = (np.float64(params[name]) for name in ("kernel", "bias"))
    wanted = _reference(x, kernel, bias, g, size, stride, padding)
    found = (y, dx, gradients["kernel"], gradients["bias"])
    for name, ours, theirs in zip(("y", "x", "kernel", "bias"), found, wanted, strict=True):
        agree(ours, theirs, rtol=1e-5, what=name)


@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), GEOMETRIES)
def test_the_layer_equals_the_layer_of_flax(height, width, size, stride, padding):
    x = jax.random.normal(jax.random.key(1), (2, height, width, 3))
    own, flax = (_layer(size, stride, padding, cls) for cls in (ConvLocal, nn.ConvLocal))
    variables, of_flax = (layer.init(jax.random.key(0), x) for layer in (own, flax))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, of_flax))
    agree(own.apply(variables, x), flax.apply(variables, x), rtol=1e-5)


def test_the_layer_computes_in_the_given_dtype():
    x = jnp.ones((1, 6, 6, 3))
    layer = _layer((3, 3), 1, ((1, 1), (1, 1)), dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
