"""The operations under the transformations of JAX."""

import jax
import jax.numpy as jnp
import pytest

from tests.agreement import agree_each
from tests.operations import OTHER_LRN, activations, lrn, pool, value_and_vjp


@pytest.mark.parametrize("op", [lrn(**OTHER_LRN), pool(3, 2)], ids=["lrn", "pool"])
class TestTransformations:
    """jit, vmap and pmap return what the plain call returns, and the same gradients."""

    def gradient(self, op):
        return jax.grad(lambda x: jnp.sum(op(x) ** 2))

    def assert_same(self, transformed, op, x):
        agree_each(transformed(op)(x), jax.jit(op)(x), rtol=1e-6)
        agree_each(transformed(self.gradient(op))(x), jax.jit(self.gradient(op))(x), rtol=1e-5)

    def test_jit(self, op):
        x = activations((2, 7, 7, 5))
        agree_each(jax.jit(op)(x), op(x), rtol=1e-6)

    def test_grad_through_jit(self, op):
        x = activations((2, 7, 7, 5))
        g = jax.jit(op)(x) * 2
        agree_each(self.gradient(jax.jit(op))(x), value_and_vjp(op, x, g)[1], rtol=1e-5)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_vmap(self, op, axis):
        x = activations((3, 2, 7, 7, 5))
        self.assert_same(lambda f: jax.jit(jax.vmap(f, axis, axis)), op, x)

    def test_pmap(self, op):
        self.assert_same(jax.pmap, op, activations((jax.local_device_count(), 2, 7, 7, 5)))
