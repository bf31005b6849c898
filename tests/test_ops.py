"""Claims about the normalisations and the poolings."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.ops import (
    avg_pool,
    local_response_norm,
    max_pool,
    overhang,
    spatial_response_norm,
)
from tests.agreement import agree, agree_each
from tests.reference import ops as reference

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

    def test_backward_keeps_one_byte_an_output(self):
        assert bytes_kept(max_pool, (2, 9, 9, 3)) == 2 * 4 * 4 * 3

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


@pytest.mark.parametrize("op", [lrn(**OTHER_LRN), pool(3, 2)], ids=["lrn", "pool"])
class TestTransformations:
    """What jit, vmap and pmap return is what the plain call returns, gradients included."""

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
