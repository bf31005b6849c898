"""The network: shapes, counts, columns, initial values, and dropout per example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import AlexNet
from alexnet_jax import model as model_lib
from alexnet_jax.inspect import summary
from alexnet_jax.layers import walk
from configs import alexnet, alexnet_2012_code, alexnet_two_device
from tests import recipes

SMALL = {"features": (8, 16, 16, 16, 8), "hidden": (32, 32), "num_classes": 10}


NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture(scope="module")
def he():
    """Return variables of SMALL, drawn with the initializer of He and with biases of 0."""
    model = AlexNet(**SMALL, initializer="he_normal", biases=(0.0,) * 8)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 67, 67, 3)))


def _abstract(**fields):
    return jax.eval_shape(
        lambda: AlexNet(**fields).init_with_output(
            jax.random.key(0), jnp.zeros((1, 227, 227, 3)), mutable=["params", "intermediates"]
        )
    )


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, 62_378_344),
        ({"groups": 2}, 60_965_224),
        ({"groups": 2, "cross_layers": ("conv3", "conv4")}, 61_628_776),
    ],
)
def test_parameter_counts_are_the_published_ones(fields, parameters):
    _, variables = _abstract(**fields)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_shapes_are_the_published_ones():
    logits, variables = _abstract()
    maps = {name: value[0].shape[1:] for name, value in variables["intermediates"].items()}
    assert maps == {
        "relu1": (55, 55, 96),
        "lrn1": (55, 55, 96),
        "max_pool1": (27, 27, 96),
        "relu2": (27, 27, 256),
        "lrn2": (27, 27, 256),
        "max_pool2": (13, 13, 256),
        "relu3": (13, 13, 384),
        "relu4": (13, 13, 384),
        "relu5": (13, 13, 256),
        "max_pool5": (6, 6, 256),
        "relu6": (4096,),
        "dropout6": (4096,),
        "relu7": (4096,),
        "dropout7": (4096,),
    }
    assert logits.shape == (1, 1000)
    assert logits.dtype == jnp.float32
    kernels = {name: leaves["kernel"].shape for name, leaves in variables["params"].items()}
    assert kernels == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 96, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 384, 384),
        "conv5": (3, 3, 384, 256),
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "fc8": (4096, 1000),
    }


@pytest.mark.parametrize(
    ("recipe", "totals"),
    [
        (alexnet, ["62,378,344", "1,135,256,096", "659,272"]),
        (alexnet_2012_code, ["60,965,224", "724,406,816", "659,272"]),
        (alexnet_two_device, ["60,965,224", "724,406,816", "659,272"]),
    ],
)
def test_the_summary_shows_the_published_totals(recipe, totals):
    assert summary(recipe.get_config()).splitlines()[-1].split() == ["total", *totals]


@pytest.mark.parametrize("recipe", recipes.NAMES)
def test_the_walk_over_the_layers_describes_the_network(recipe):
    """Compares outputs and kernels with the shapes that Flax traces."""
    config = recipes.of_name(recipe)
    crop = config.augment.crop
    variables = jax.eval_shape(
        lambda: model_lib.from_config(config).init(
            jax.random.key(0),
            jnp.zeros((1, crop, crop, 3)),
            capture_intermediates=True,
            mutable=["params", "intermediates"],
        )
    )
    parts = walk(config.model, crop)
    found = {part.name: part for part in parts}
    assert len(found) == len(parts)
    for name, captured in variables["intermediates"].items():
        if name != "__call__":
            output = captured["__call__"][0] if "__call__" in captured else captured[0]
            assert found.pop(name).output == output.shape[1:], name
    assert not found
    for part in parts:
        if part.kernel:
            of_layer = variables["params"][part.name]
            assert part.kernel == of_layer["kernel"].shape
            assert part.parameters == sum(leaf.size for leaf in of_layer.values())


def test_initial_values_are_the_published_ones():
    config = alexnet.get_config()
    config.model.features = (96, 64, 64, 64, 64)
    config.model.hidden = (128, 128)
    model = model_lib.from_config(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 227, 227, 3)))["params"]
    for name, bias in zip(NAMES, [0, 1, 0, 1, 1, 1, 1, 1], strict=True):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        assert np.all(params[name]["bias"] == bias)
        assert abs(kernel.mean()) < 5 * 0.01 / kernel.size**0.5
        assert kernel.std() == pytest.approx(0.01, rel=5 / (2 * kernel.size) ** 0.5)


def test_every_layer_draws_its_weights_with_its_own_deviation():
    stds = tuple(0.01 * i for i in range(1, 9))
    model = AlexNet(**SMALL, init_stds=stds)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 67, 67, 3)))["params"]
    for name, std in zip(NAMES, stds, strict=True):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        assert kernel.std() == pytest.approx(std, rel=5 / (2 * kernel.size) ** 0.5)


def test_the_deviation_of_he_falls_with_the_root_of_the_inputs(he):
    kernel = np.asarray(he["params"]["conv2"]["kernel"], np.float64)
    assert kernel.std() == pytest.approx((2 / (5 * 5 * 8)) ** 0.5, rel=0.05)


def test_two_columns_do_not_see_each_other_before_the_crossing_layer(he):
    model = AlexNet(**SMALL, groups=2)
    images = jax.random.normal(jax.random.key(1), (2, 67, 67, 3)) * 50
    params = he["params"]
    for name in ("conv2", "conv4", "conv5"):  # these see one column: half of the inputs
        kernel = params[name]["kernel"]
        half = kernel[:, :, : kernel.shape[2] // 2]
        params = params | {name: params[name] | {"kernel": half}}
    # Other filters in the second half of conv1 must not change the first half of conv2's output.
    kernel = params["conv1"]["kernel"]
    other = {**params, "conv1": {**params["conv1"], "kernel": kernel.at[..., 4:].multiply(3.0)}}
    maps = jax.jit(lambda p: model.apply({"params": p}, images, mutable=["intermediates"])[1])
    first, second = maps(params)["intermediates"], maps(other)["intermediates"]
    np.testing.assert_array_equal(first["relu2"][0][..., :8], second["relu2"][0][..., :8])
    assert not np.allclose(first["relu2"][0][..., 8:], second["relu2"][0][..., 8:])
    assert not np.allclose(first["relu3"][0][..., :8], second["relu3"][0][..., :8])


def test_parameters_and_logits_stay_float32_in_bfloat16(he):
    model = AlexNet(**SMALL, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (2, 67, 67, 3)) * 50
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    variables = he
    apply = functools.partial(model.apply, mutable=["intermediates"])
    logits, state = jax.jit(apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert state["intermediates"]["lrn1"][0].dtype == jnp.bfloat16
    exact = jax.jit(AlexNet(**SMALL).apply)(variables, images)
    np.testing.assert_allclose(logits, exact, atol=0.02 * float(jnp.abs(exact).max()))


def test_dropout_depends_on_the_example_and_not_on_its_row(he):
    model, variables = AlexNet(**SMALL), he
    images = jax.random.normal(jax.random.key(1), (6, 67, 67, 3))

    @jax.jit
    def train(images, example_ids):
        rngs = {"dropout": jax.random.key(2)}
        return model.apply(variables, images, train=True, example_ids=example_ids, rngs=rngs)

    whole = train(images, None)
    part = train(images[4:], jnp.array([4, 5]))
    np.testing.assert_allclose(part, whole[4:], rtol=1e-4, atol=1e-6)
    assert not np.allclose(train(images[4:], None), whole[4:], rtol=1e-2)


def test_dropout_zeroes_half_of_each_example():
    y = np.asarray(model_lib._kept(jax.random.key(0), jnp.arange(64), 4096, 0.5))
    assert y.dtype == bool
    assert abs(y.mean() - 0.5) < 5 * 0.5 / y.size**0.5
    assert abs((y[0] == y[1]).mean() - 0.5) < 0.05  # each example has a mask of its own


def test_fc6_and_fc7_drop_different_units(he):
    model = AlexNet(**SMALL)
    images = jax.random.normal(jax.random.key(1), (8, 67, 67, 3))
    ones = {
        name: {**of_layer, "bias": of_layer["bias"] + 1} for name, of_layer in he["params"].items()
    }
    variables = {"params": ones}
    apply = functools.partial(model.apply, train=True, mutable=["intermediates"])
    _, state = jax.jit(apply)(variables, images, rngs={"dropout": jax.random.key(2)})
    noted = {name: np.asarray(value[0]) for name, value in state["intermediates"].items()}
    open_in_both = (noted["relu6"] > 0) & (noted["relu7"] > 0)
    kept = [noted[name][open_in_both] != 0 for name in ("dropout6", "dropout7")]
    assert open_in_both.sum() > 50
    assert 0.2 < (kept[0] == kept[1]).mean() < 0.8


@pytest.mark.parametrize(("scaling", "halved"), [("train", False), ("test", True)])
def test_outputs_are_halved_in_tests_or_doubled_in_training(he, scaling, halved):
    model, variables = AlexNet(**SMALL, dropout_scaling=scaling), he
    images = jax.random.normal(jax.random.key(1), (2, 67, 67, 3))

    def maps(train):
        rngs = {"dropout": jax.random.key(2)}
        apply = functools.partial(model.apply, train=train, rngs=rngs, mutable=["intermediates"])
        return jax.jit(apply)(variables, images)[1]["intermediates"]

    for train, factor in ((False, 0.5 if halved else 1.0), (True, 1.0 if halved else 2.0)):
        noted = maps(train)
        mask = np.ones_like(noted["relu6"][0])
        if train:
            key = model.bind(variables, rngs={"dropout": jax.random.key(2)}).make_rng("dropout")
            mask = np.asarray(model_lib._kept(key, jnp.arange(2), 32, 0.5))
        fc7 = variables["params"]["fc7"]
        expected = (noted["relu6"][0] * mask * factor) @ fc7["kernel"] + fc7["bias"]
        np.testing.assert_allclose(noted["relu7"][0], np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (8, 8)}, r"features=\(8, 8\) is of length 2; the layers are conv1, .*conv5 "),
        ({"features": (8,) * 6}, "features=.* of length 6"),
        ({"kernels": (3,)}, "kernels="),
        ({"strides": (1,) * 4}, "strides="),
        ({"padding": ()}, "padding="),
        ({"stages": (("relu",),)}, "stages="),
        ({"biases": (0.0,) * 5}, "biases=.*; the layers are conv1, .*, fc8 "),
        ({"hidden": (8,)}, "biases=.*; the layers are conv1, .*, fc7 "),
        ({"init_stds": (0.01,)}, "init_stds="),
    ],
)
def test_attributes_of_unequal_length_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        _abstract(**fields)
