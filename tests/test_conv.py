"""The weight gradient of the convolution, compared with sums in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax import conv
from alexnet_jax.conv import NHWC, conv_general_dilated
from tests.agreement import agree
from tests.reference import ops as reference

# height, width, kernel, stride, padding: AlexNet's conv1 and conv2 among them, and sizes that
# leave pixels over or cut blocks short
GEOMETRIES = [
    (35, 39, 11, 4, 0),
    (35, 36, 11, 4, 2),
    (9, 9, 5, 1, 2),
    (8, 7, 3, 1, 1),
    (9, 10, 3, 2, 1),
    (10, 9, 2, 3, 0),
    (7, 7, 1, 2, 0),
]


def _case(height, width, kernel, channels=3, features=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, channels))
    return x, rng.normal(size=(kernel, kernel, channels, features)), rng


def _layer(kernel, stride, padding, dtype=jnp.float32, groups=1, own=True):
    return nn.Conv(
        4,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        use_bias=False,
        dtype=dtype,
        feature_group_count=groups,
        conv_general_dilated=conv_general_dilated if own else None,
    )


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(layer, x, kernel, g):
    apply = lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)  # noqa: E731
    y, vjp = jax.vjp(apply, x, kernel)
    return y, *vjp(g.astype(y.dtype))


@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), GEOMETRIES)
def test_value_and_gradients_agree_with_the_reference(
    height, width, kernel, stride, padding, monkeypatch
):
    monkeypatch.setattr(conv, "CACHED_BYTES", 1)  # an image at a time; below both at once
    x, weights, rng = _case(height, width, kernel)
    expected = reference.conv(x, weights, stride=stride, padding=padding)
    g = rng.normal(size=expected.shape)
    gradients = reference.conv_gradients(x, weights, g, stride=stride, padding=padding)
    layer = _layer(kernel, stride, padding)
    found = _value_and_gradients(layer, *(jnp.asarray(a, jnp.float32) for a in (x, weights, g)))
    for name, a, b in zip(("y", "dx", "dw"), found, (expected, *gradients), strict=True):
        agree(a, b, rtol=1e-6, what=name)


@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), GEOMETRIES)
def test_the_gradients_over_blocks_of_pixels_agree_with_the_reference(
    height, width, kernel, stride, padding
):
    x, weights, rng = _case(height, width, kernel)
    expected = reference.conv(x, weights, stride=stride, padding=padding)
    g = rng.normal(size=expected.shape)
    strides, paddings = (stride,) * 2, ((padding,) * 2,) * 2
    plain = partial(
        lax.conv_general_dilated, window_strides=strides, padding=paddings, dimension_numbers=NHWC
    )
    way = partial(conv._over_blocks, plain=plain, strides=strides, padding=paddings)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, weights)]
    y, vjp = jax.vjp(jax.jit(way), *arrays)
    agree(y, expected, rtol=1e-6, what="y")
    _, dw = reference.conv_gradients(x, weights, g, stride=stride, padding=padding)
    agree(vjp(jnp.asarray(g, jnp.float32))[1], dw, rtol=1e-6, what="dw")
    assert "stride = [1, 1]" in jax.jit(way).lower(*arrays).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_gpu_computes_the_first_layer_over_blocks_of_pixels(platform):
    images, kernel = jnp.ones((1, 13, 13, 3)), jnp.ones((5, 5, 3, 8))
    layer = partial(
        conv.conv_general_dilated,
        window_strides=(4, 4),
        padding="VALID",
        dimension_numbers=NHWC,
    )

    def loss(images, kernel):
        return layer(images, kernel).sum()

    traced = jax.jit(jax.value_and_grad(loss, argnums=1)).trace(images, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stride = [4, 4]" in program) == (platform != "cuda")


def test_bfloat16_sums_in_float32(monkeypatch):
    monkeypatch.setattr(conv, "CACHED_BYTES", 1)  # as many sums as there are pictures
    rng = np.random.default_rng(0)
    x, weights, g = (
        np.asarray(jnp.asarray(rng.normal(size=size), jnp.bfloat16), np.float64)
        for size in ((64, 12, 12, 3), (3, 3, 3, 4), (64, 12, 12, 4))
    )
    _, expected = reference.conv_gradients(x, weights, g, stride=1, padding=1)
    _, _, found = _value_and_gradients(
        _layer(3, 1, 1, jnp.bfloat16), *(jnp.asarray(a, jnp.float32) for a in (x, weights, g))
    )
    agree(found, expected, rtol=2.0**-8)  # one rounding of the result


@pytest.mark.parametrize(
    ("batch", "of_one", "some"),
    [
        (12, 101, 1),
        (12, 20, 4),  # three times, not 5, 5 and 2
        (12, 1, 12),
        (128, 3, 32),
        (7, 20, 5),  # and 2
        (7, 1, 7),
        (127, 1, 100),
        (127, 101, 1),
        (1, 20, 1),
    ],
)
def test_as_many_images_at_a_time_as_fit_the_cache_in_equal_parts_if_any_are_large_enough(
    batch, of_one, some, monkeypatch
):
    monkeypatch.setattr(conv, "CACHED_BYTES", 100)
    assert conv._images_at_a_time(batch, of_one) == some


@pytest.mark.parametrize("batch", [1, 6, 7, 127])
def test_parts_of_several_images_add_up_with_the_remainder(batch, monkeypatch):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(batch, 6, 5, 3)), rng.normal(size=(3, 3, 3, 4))
    monkeypatch.setattr(conv, "CACHED_BYTES", 4 * 6 * 5 * 27 * 4)  # the patches of four
    g = rng.normal(size=(batch, 6, 5, 4))
    _, expected = reference.conv_gradients(x, weights, g, stride=1, padding=1)
    arrays = (jnp.asarray(a, jnp.float32) for a in (x, weights, g))
    _, _, found = _value_and_gradients(_layer(3, 1, 1), *arrays)
    agree(found, expected, rtol=1e-6)


@pytest.mark.parametrize("empty", ["pictures", "outputs"])
def test_empty_arrays_give_what_xla_gives(empty):
    pictures, side = (0, 5) if empty == "pictures" else (2, 2)
    arrays = [jnp.ones((pictures, side, side, 3)), jnp.ones((3, 3, 3, 4))]
    y = _layer(3, 1, 0).apply({"params": {"kernel": arrays[1]}}, arrays[0])
    found = _value_and_gradients(_layer(3, 1, 0), *arrays, jnp.ones_like(y))
    for a, b in zip(found[1:], arrays, strict=True):
        np.testing.assert_array_equal(a, np.zeros(b.shape))


def test_shard_map_may_check_what_varies():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    x, weights, rng = _case(9, 9, 3)
    x, weights = jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32)

    def loss(weights, x, own):
        return (_layer(3, 1, 1, own=own).apply({"params": {"kernel": weights}}, x) ** 2).sum()

    def gradient(own):
        def of_a_device(weights, x):
            weights = jax.lax.pcast(weights, ("data",), to="varying")
            return jax.lax.psum(jax.grad(loss)(weights, x, own), "data")

        sharded = jax.shard_map(
            of_a_device,
            mesh=mesh,
            in_specs=(jax.sharding.PartitionSpec(), spec),
            out_specs=jax.sharding.PartitionSpec(),
        )
        return jax.jit(sharded)(weights, x)

    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_padding_of_linen_gives_xlas_gradients(padding, stride):
    x, weights, rng = _case(9, 11, 3)
    layer = _layer(3, stride, padding)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, weights)]
    g = jnp.asarray(
        rng.normal(size=layer.apply({"params": {"kernel": arrays[1]}}, arrays[0]).shape)
    )
    found = _value_and_gradients(layer, *arrays, g)
    plain = _value_and_gradients(_layer(3, stride, padding, own=False), *arrays, g)
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, weights, rng = _case(12, 12, 3)
        g = rng.normal(size=(2, 5, 5, 4))
        _, expected = reference.conv_gradients(x, weights, g, stride=2, padding=0)
        layer = _layer(3, 2, 0, jnp.float64)
        _, _, found = _value_and_gradients(layer, *(jnp.asarray(a) for a in (x, weights, g)))
    agree(found, expected, rtol=1e-14)


def test_groups_are_left_to_xla():
    x, weights, rng = _case(9, 9, 3, channels=4)
    weights = weights[:, :, :2]
    g = rng.normal(size=(2, 9, 9, 4))
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, weights, g)]
    found = _value_and_gradients(_layer(3, 1, 1, groups=2), *arrays)
    plain = _value_and_gradients(_layer(3, 1, 1, groups=2, own=False), *arrays)
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a, b)
