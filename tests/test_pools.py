"""The poolings."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.ops import (
    avg_pool,
    max_pool,
    overhang,
)
from tests.agreement import agree, agree_each
from tests.operations import (
    ROUNDING,
    WINDOWS,
    as_on_a_tpu,
    bytes_kept,
    central_differences,
    cotangent,
    mean_pool,
    pool,
    pooled_shape,
    value_and_vjp,
)
from tests.reference import ops as reference


class TestMaxPool:
    # Leaves pixels over below or to the right of every window but those of stride 1.
    SHAPE = (2, 9, 12, 3)

    def check(self, x, window, stride, relative=1e-5):
        g = cotangent(pooled_shape(x.shape, window, stride), x.dtype)
        y, dx = value_and_vjp(pool(window, stride), x, g)
        assert y.dtype == dx.dtype == x.dtype
        np.testing.assert_array_equal(
            np.asarray(y, np.float64), reference.max_pool(x, window, stride)
        )
        agree_each(dx, reference.max_pool_gradient(x, g, window, stride), rtol=relative)

    @pytest.mark.parametrize(("window", "stride"), WINDOWS)
    def test_agrees_with_the_reference(self, window, stride):
        self.check(cotangent(self.SHAPE), window, stride)

    @pytest.mark.parametrize(("window", "stride"), WINDOWS)
    def test_ties_go_to_the_first_maximum(self, window, stride):
        few_values = np.random.default_rng(2).integers(0, 3, self.SHAPE)
        self.check(jnp.asarray(few_values, jnp.float32), window, stride)
        self.check(jnp.ones(self.SHAPE), window, stride)

    def test_ties_are_broken_row_by_row(self):
        x = jnp.array([[1.0, 3.0], [3.0, 2.0]])[:, :, None]
        dx = value_and_vjp(pool(2, 1), x, jnp.full((1, 1, 1), 5.0))[1]
        np.testing.assert_array_equal(dx[:, :, 0], [[0, 5], [0, 0]])

    def test_ties_are_broken_as_xla_breaks_them(self):
        x = jnp.asarray(np.random.default_rng(2).integers(0, 3, self.SHAPE), jnp.float32)
        g = cotangent(pooled_shape(self.SHAPE, 3, 2))

        def xla(x):
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

        np.testing.assert_allclose(
            value_and_vjp(pool(3, 2), x, g)[1], value_and_vjp(xla, x, g)[1], 1e-6, 1e-6
        )

    def test_defaults_overlap_by_one_pixel(self):
        y = jax.jit(max_pool)(jnp.arange(25.0).reshape(5, 5, 1))
        np.testing.assert_array_equal(y[:, :, 0], [[12, 14], [22, 24]])

    def test_more_leading_axes(self):
        self.check(cotangent((2, 1, 3, 4, 5, 2)), 3, 2)

    def test_places_in_large_windows_and_strides_stay_distinct(self):
        # Beyond what one and two bytes can number.
        self.check(cotangent((20, 20, 1)), 1, 20)
        self.check(cotangent((12, 17, 1)), 9, 8)
        self.check(cotangent((300, 300, 1)), 1, 300)

    def test_bfloat16_loses_one_rounding_only(self):
        # Every pixel in the middle of a 3 x 3 plateau collects from up to nine windows.
        x = jnp.asarray(np.random.default_rng(3).integers(0, 9, (2, 9, 9, 8)), jnp.bfloat16)
        self.check(x, 3, 1, ROUNDING["bfloat16"])

    @pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 3)])
    def test_gradient_is_the_slope_of_the_reference(self, window, stride):
        # Distinct whole numbers: a step of 1/4 changes no maximum's place.
        x = np.random.default_rng(4).permutation(7 * 8 * 2).reshape(7, 8, 2).astype(np.float64)
        g = cotangent(pooled_shape(x.shape, window, stride))

        def loss(x):
            return np.sum(np.asarray(g, np.float64) * reference.max_pool(x, window, stride))

        slope = central_differences(loss, x, step=0.25)
        dx = value_and_vjp(pool(window, stride), jnp.asarray(x, jnp.float32), g)[1]
        agree_each(dx, slope, rtol=1e-5)

    def test_nan_counts_as_the_maximum(self):
        x = np.arange(25, dtype=np.float32).reshape(5, 5, 1)
        x[1, 3] = x[2, 2] = np.nan
        y, dx = value_and_vjp(pool(2, 1), jnp.asarray(x), jnp.ones((4, 4, 1)))
        has_nan = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
        np.testing.assert_array_equal(np.isnan(y[:, :, 0]), np.array(has_nan, bool))
        # One window holds both: rows 1 and 2, columns 2 and 3. The upper NaN gets its gradient.
        assert (dx[1, 3, 0], dx[2, 2, 0]) == (4, 3)
        assert dx.sum() == 16

    def test_windows_of_minus_infinity_still_pass_their_gradient(self):
        dx = value_and_vjp(max_pool, jnp.full((3, 3, 1), -jnp.inf), jnp.ones((1, 1, 1)))[1]
        assert dx[0, 0, 0] == 1
        assert dx.sum() == 1

    def test_a_compiled_step_keeps_one_byte_an_output(self):
        """The feature maps are released once they are pooled. Only a TPU reads them again."""
        shape = 8, 33, 33, 16
        images, kernel = jnp.ones((*shape[:3], 2)), jnp.ones((2, shape[3]))
        gradient = jax.grad(lambda kernel: jnp.sum(max_pool(images @ kernel) ** 2))
        memory = jax.jit(gradient).lower(kernel).compile().memory_analysis()
        # The maps, or their gradient in the same place; of each output value, byte and gradient.
        pooled = 8 * 16 * 16 * 16
        assert memory.temp_size_in_bytes < 4 * math.prod(shape) + 10 * pooled
        assert bytes_kept(max_pool, shape) == 4 * math.prod(shape) + pooled  # not compiled

    @pytest.mark.parametrize(
        ("window", "stride", "ceil_mode"), [(3, 2, False), (2, 3, False), (3, 2, True)]
    )
    def test_what_is_computed_on_a_tpu_agrees_too(self, window, stride, ceil_mode, monkeypatch):
        x = jnp.asarray(np.random.default_rng(2).integers(0, 3, self.SHAPE), jnp.float32)
        rounded = math.ceil if ceil_mode else math.floor
        g = cotangent(pooled_shape(self.SHAPE, window, stride, rounded))
        y, dx = value_and_vjp(pool(window, stride, ceil_mode), x, g)
        monkeypatch.setattr(lax, "platform_dependent", as_on_a_tpu)
        op = partial(max_pool, window=window, stride=stride, ceil_mode=ceil_mode)  # traced anew
        y_there, dx_there = value_and_vjp(op, x, g)
        np.testing.assert_array_equal(y_there, y)
        np.testing.assert_allclose(dx_there, dx, 1e-6, 1e-6)

    @pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
    def test_only_a_tpu_scatters(self, platform):
        traced = jax.jit(jax.grad(lambda x: max_pool(x).sum())).trace(jnp.ones((3, 9, 9, 1)))
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("select_and_scatter" in program) == (platform == "tpu")

    @pytest.mark.parametrize(
        ("shape", "window", "stride", "message"),
        [
            ((4, 2, 1), 3, 2, "window 3 does not fit into 4 x 2"),
            ((2, 4, 1), 3, 2, "window 3 does not fit into 2 x 4"),
            ((4, 4, 1), 0, 2, "window 0 and stride 2 must be at least 1"),
            ((4, 4, 1), 3, 0, "window 3 and stride 0 must be at least 1"),
            ((4, 4), 3, 2, r"must be \(..., H, W, C\), got shape \(4, 4\)"),
        ],
    )
    def test_refuses(self, shape, window, stride, message):
        with pytest.raises(ValueError, match=message):
            max_pool(jnp.zeros(shape), window=window, stride=stride)


class TestSizesRoundedUp:
    """Pooling with ceil_mode."""

    # The last window of 3 with stride 2 overhangs at the right, but not at the bottom.
    SHAPE = (2, 7, 10, 3)

    def check(self, x, window, stride):
        g = cotangent(pooled_shape(x.shape, window, stride, math.ceil), x.dtype)
        y, dx = value_and_vjp(pool(window, stride, True), x, g)
        assert y.dtype == dx.dtype == x.dtype
        np.testing.assert_array_equal(y, reference.overhanging_max_pool(x, window, stride))
        wanted = reference.max_pool_gradient(x, g, window, stride)
        agree(dx, wanted, rtol=1e-6, what="dx")

    @pytest.mark.parametrize("op", [pool(3, 2, True), mean_pool(3, 2, True)], ids=["max", "avg"])
    def test_the_sides_of_the_cifar_nets_halve(self, op):
        for side in (32, 16, 8):
            y = jax.eval_shape(op, jax.ShapeDtypeStruct((1, side, side, 2), jnp.float32))
            assert y.shape == (1, side // 2, side // 2, 2)

    @pytest.mark.parametrize("side", [32, 16, 8])
    def test_max_pool_agrees_with_the_reference_on_the_sides_of_the_cifar_nets(self, side):
        self.check(cotangent((1, side, side, 2)), 3, 2)

    @pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 3), (5, 3), (4, 1)])
    def test_max_pool_agrees_with_the_reference(self, window, stride):
        self.check(cotangent(self.SHAPE), window, stride)

    def test_what_overhangs_is_no_maximum_of_negative_numbers(self):
        x = -1 - jnp.abs(cotangent((1, 8, 8, 2)))
        assert jax.jit(pool(3, 2, True))(x).max() < 0
        self.check(x, 3, 2)

    def test_ties_go_to_the_first_maximum(self):
        few_values = np.random.default_rng(2).integers(0, 3, self.SHAPE)
        self.check(jnp.asarray(few_values, jnp.float32), 3, 2)

    def test_windows_of_minus_infinity_give_none_of_their_gradient_away(self):
        dx = value_and_vjp(pool(3, 2, True), jnp.full((4, 4, 1), -jnp.inf), jnp.ones((2, 2, 1)))[1]
        np.testing.assert_array_equal(dx[:, :, 0].sum(), 4)

    def test_no_rounding_where_the_windows_fit(self):
        x = cotangent((2, 7, 9, 3))
        for op in (pool, mean_pool):
            np.testing.assert_array_equal(jax.jit(op(3, 2, True))(x), jax.jit(op(3, 2))(x))

    def test_a_stride_beyond_the_window_is_refused(self):
        with pytest.raises(ValueError, match="ceil_mode needs stride 3 <= window 2"):
            max_pool(jnp.zeros((9, 9, 1)), window=2, stride=3, ceil_mode=True)

    def test_a_window_beyond_the_map_is_refused(self):
        with pytest.raises(ValueError, match="window 3 does not fit into 2 x 4"):
            max_pool(jnp.zeros((2, 4, 1)), ceil_mode=True)

    @pytest.mark.parametrize(
        ("side", "window", "stride", "pixels"),
        [(32, 3, 2, 1), (16, 3, 2, 1), (8, 3, 2, 1), (55, 3, 2, 0), (224, 11, 4, 3)],
    )
    def test_the_overhang_of_known_layers(self, side, window, stride, pixels):
        assert overhang(side, window, stride) == pixels

    def test_the_overhang_is_the_least_that_lets_windows_reach_the_end(self):
        for window, stride in [(3, 2), (2, 2), (3, 1), (5, 3), (1, 1), (11, 4)]:
            for side in range(window, 30):
                last = next(at for at in range(0, side, stride) if at + window >= side)
                assert overhang(side, window, stride) == last + window - side


class TestAvgPool:
    def check(self, shape, window, stride, ceil_mode):
        x = cotangent(shape)
        rounded = math.ceil if ceil_mode else math.floor
        g = cotangent(pooled_shape(shape, window, stride, rounded), seed=2)
        y, dx = value_and_vjp(mean_pool(window, stride, ceil_mode), x, g)
        assert y.dtype == dx.dtype == x.dtype
        wanted = {
            "y": reference.avg_pool(x, window, stride, ceil_mode),
            "dx": reference.avg_pool_gradient(x, g, window, stride),
        }
        agree({"y": y, "dx": dx}, wanted, rtol=1e-6)

    @pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 3), (4, 1)])
    def test_agrees_with_the_reference(self, window, stride):
        self.check((2, 9, 12, 3), window, stride, ceil_mode=False)

    @pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (5, 3)])
    def test_rounded_up_it_agrees_with_the_reference(self, window, stride):
        self.check((2, 7, 10, 3), window, stride, ceil_mode=True)

    @pytest.mark.parametrize("side", [32, 16, 8])
    def test_it_agrees_with_the_reference_on_the_sides_of_the_cifar_nets(self, side):
        self.check((1, side, side, 2), 3, 2, ceil_mode=True)

    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_equal_pixels_are_their_own_mean(self, ceil_mode):
        y = jax.jit(mean_pool(3, 2, ceil_mode))(jnp.full((1, 8, 8, 2), 6.0))
        np.testing.assert_array_equal(y, 6)

    def test_bfloat16_loses_one_rounding_only(self):
        x = cotangent((1, 8, 8, 2), "bfloat16") + 20
        y, dx = value_and_vjp(mean_pool(3, 2, True), x, cotangent((1, 4, 4, 2), "bfloat16"))
        assert y.dtype == dx.dtype == x.dtype
        wanted = reference.avg_pool(np.asarray(x, np.float64), 3, 2, True)
        agree(np.asarray(y, np.float64), wanted, rtol=2**-8)

    def test_what_max_pool_refuses_is_refused(self):
        with pytest.raises(ValueError, match="avg_pool: window 3 does not fit into 2 x 2"):
            avg_pool(jnp.ones((1, 2, 2, 1)), window=3)
        with pytest.raises(ValueError, match="avg_pool: ceil_mode needs stride 3 <= window 2"):
            avg_pool(jnp.ones((1, 9, 9, 1)), window=2, stride=3, ceil_mode=True)
        with pytest.raises(ValueError, match="avg_pool: window 0 and stride 1"):
            avg_pool(jnp.ones((1, 9, 9, 1)), window=0, stride=1)
