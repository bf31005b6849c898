"""The normalisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.ops import (
    local_response_norm,
    spatial_response_norm,
)
from tests.agreement import agree, agree_each
from tests.operations import (
    LRN,
    OTHER_LRN,
    ROUNDING,
    SPATIAL,
    activations,
    as_on_a_tpu,
    bytes_kept,
    central_differences,
    cotangent,
    lrn,
    spatial_norm,
    value_and_vjp,
)
from tests.reference import ops as reference


class TestLocalResponseNorm:
    def check(self, shape, dtype, relative, relative_gradient, **constants):
        x, g = activations(shape, dtype), cotangent(shape, dtype)
        y, dx = value_and_vjp(lrn(**constants), x, g)
        assert y.dtype == dx.dtype == x.dtype
        constants = LRN | constants
        agree_each(y, reference.local_response_norm(x, **constants), rtol=relative)
        expected = reference.local_response_norm_gradient(x, g, **constants)
        agree_each(dx, expected, rtol=relative_gradient)

    @pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7), (5, 1)])
    def test_defaults_are_the_papers_formula(self, shape):
        self.check(shape, "float32", 1e-6, 1e-5)

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 20, 1000])
    def test_any_window_agrees_with_the_reference(self, n):
        self.check((3, 9), "float32", 1e-6, 1e-5, **OTHER_LRN | {"n": n})

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("constants", [LRN, OTHER_LRN])
    def test_narrow_types_lose_one_rounding_only(self, dtype, constants):
        self.check((4, 5, 32), dtype, ROUNDING[dtype], ROUNDING[dtype], **constants)

    @pytest.mark.parametrize("constants", [LRN, OTHER_LRN])
    def test_what_is_computed_on_other_devices_agrees_too(self, constants, monkeypatch):
        monkeypatch.setattr(lax, "platform_dependent", lambda *x, default, **_: default(*x))
        self.check((3, 37), "float32", 1e-6, 1e-5, **constants)  # a shape of no other test
        self.check((3, 38), "bfloat16", ROUNDING["bfloat16"], ROUNDING["bfloat16"], **constants)

    @pytest.mark.parametrize("n", [1, 4, 5, 1000])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_what_is_computed_on_a_tpu_agrees_too(self, n, dtype, monkeypatch):
        monkeypatch.setattr(lax, "platform_dependent", as_on_a_tpu)
        relative = ROUNDING.get(dtype, 1e-5)
        self.check((3, 17), dtype, relative, relative, **OTHER_LRN | {"n": n})

    @pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
    def test_only_on_a_tpu_channels_are_summed_by_matrix_products(self, platform):
        traced = jax.jit(jax.grad(lambda x: lrn()(x).sum())).trace(jnp.ones((3, 9)))
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in program) == (platform == "tpu")

    @pytest.mark.parametrize(
        ("platform", "again", "roots"),
        [("cpu", False, False), ("cuda", True, True), ("tpu", False, True)],
    )
    def test_a_gpu_computes_d_again_and_off_the_cpu_its_power_is_by_roots(
        self, platform, again, roots
    ):
        traced = jax.jit(jax.grad(lambda x: lrn()(x).sum())).trace(jnp.ones((3, 9)))
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in program) == again  # or XLA keeps what is the same
        assert ("rsqrt" in program) == roots

    def test_float64_stays_float64(self):
        with jax.enable_x64(True):
            self.check((3, 9), "float64", 1e-13, 1e-12, **OTHER_LRN)

    def test_even_window_reaches_further_back_than_forward(self):
        # n = 2: each channel sees itself and the one before it, d = 1 + 3 and 1 + 3 + 3.
        y = jax.jit(lrn(k=1, n=2, alpha=1, beta=1))(jnp.full(3, 3.0**0.5))
        np.testing.assert_allclose(y, np.sqrt(3) / np.array([4, 7, 7]), 1e-6)

    @pytest.mark.parametrize("constants", [LRN, OTHER_LRN])
    def test_gradient_is_the_slope_of_the_reference(self, constants):
        x, g = activations((2, 9)), cotangent((2, 9))

        def loss(x):
            return np.sum(np.asarray(g, np.float64) * reference.local_response_norm(x, **constants))

        slope = central_differences(loss, np.asarray(x, np.float64), step=1e-3)
        agree_each(value_and_vjp(lrn(**constants), x, g)[1], slope, rtol=1e-5)

    def test_zero_input_gives_zero_and_passes_the_gradient_through(self):
        y, dx = value_and_vjp(lrn(), jnp.zeros((2, 6)), jnp.ones((2, 6)))
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_allclose(dx, 2.0**-0.75, 1e-6)

    def test_backward_keeps_the_input_alone(self):
        assert bytes_kept(local_response_norm, (4, 6)) == 4 * 6 * 4

    @pytest.mark.parametrize(
        ("x", "n", "message"),
        [
            (np.ones(3, np.float32), 0, "n must be at least 1, got 0"),
            (np.ones(3, np.int32), 5, "must be floating, got int32"),
            (np.float32(1), 5, r"must be \(..., C\), got shape \(\)"),
        ],
    )
    def test_refuses(self, x, n, message):
        with pytest.raises(ValueError, match=message):
            local_response_norm(x, n=n)


class TestSpatialResponseNorm:
    def check(self, shape, dtype, rtol, **constants):
        x, g = activations(shape, dtype), cotangent(shape, dtype)
        y, dx = value_and_vjp(spatial_norm(**constants), x, g)
        assert y.dtype == dx.dtype == x.dtype
        constants = SPATIAL | constants
        wanted = {
            "y": reference.spatial_response_norm(x, **constants),
            "dx": reference.spatial_response_norm_gradient(x, g, **constants),
        }
        agree({"y": y, "dx": dx}, wanted, rtol=rtol)

    @pytest.mark.parametrize("shape", [(6, 8, 2), (2, 7, 5, 3), (2, 1, 4, 6, 2)])
    def test_defaults_are_those_of_the_released_code(self, shape):
        self.check(shape, "float32", 1e-6)

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 20])
    def test_any_window_agrees_with_the_reference(self, n):
        self.check((2, 5, 8, 3), "float32", 1e-6, **OTHER_LRN | {"n": n})

    @pytest.mark.parametrize("constants", [SPATIAL, OTHER_LRN])
    def test_bfloat16_loses_one_rounding_only(self, constants):
        self.check((2, 6, 5, 4), "bfloat16", ROUNDING["bfloat16"], **constants)

    def test_float64_stays_float64(self):
        with jax.enable_x64(True):
            self.check((5, 6, 2), "float64", 1e-13, **OTHER_LRN)

    def test_even_window_reaches_further_up_and_left_than_down_and_right(self):
        # n = 2 and ones: a pixel sees itself, the ones above and to the left, and between them.
        y = jax.jit(spatial_norm(k=1, n=2, alpha=1, beta=1))(jnp.ones((2, 3, 1)))
        np.testing.assert_allclose(y[:, :, 0], 1 / np.array([[2, 3, 3], [3, 5, 5]]), 1e-6)

    def test_gradient_is_the_slope_of_the_reference(self):
        x, g = activations((4, 5, 1)), cotangent((4, 5, 1))

        def loss(x):
            y = reference.spatial_response_norm(x, **OTHER_LRN)
            return np.sum(np.asarray(g, np.float64) * y)

        slope = central_differences(loss, np.asarray(x, np.float64), step=1e-3)
        dx = value_and_vjp(spatial_norm(**OTHER_LRN), x, g)[1]
        agree(dx, slope, rtol=1e-5, what="dx")

    def test_zero_input_gives_zero_and_passes_the_gradient_through(self):
        y, dx = value_and_vjp(spatial_norm(k=2), jnp.zeros((3, 4, 2)), jnp.ones((3, 4, 2)))
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_allclose(dx, 2.0**-0.75, 1e-6)

    def test_without_jit_it_is_the_same(self):
        x = activations((4, 5, 2))
        op = spatial_norm(**OTHER_LRN)
        agree_each(op(x), jax.jit(op)(x), rtol=1e-6)

    def test_backward_keeps_the_input_alone(self):
        assert bytes_kept(spatial_response_norm, (4, 6, 2)) == 4 * 6 * 2 * 4

    @pytest.mark.parametrize(
        ("x", "n", "message"),
        [
            (np.ones((3, 3, 1), np.float32), 0, "spatial_response_norm: n must be at least 1"),
            (np.ones((3, 3, 1), np.int32), 5, "must be floating, got int32"),
            (np.ones((3, 3), np.float32), 5, r"must be \(..., H, W, C\), got shape \(3, 3\)"),
        ],
    )
    def test_refuses(self, x, n, message):
        with pytest.raises(ValueError, match=message):
            spatial_response_norm(x, n=n)
