"""The whole network against the float64 NumPy reference, layer by layer, on photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_sample_images

from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax import optim
from alexnet_jax.augment import Statistics
from alexnet_jax.layers import layer_names
from alexnet_jax.state import abstract_state, create_state, step_key
from alexnet_jax.step import train_step
from configs import (
    alexnet,
    alexnet_2012_code,
    alexnet_two_device,
    cifar10_11pct,
    cifar10_13pct,
    cifar10_18pct,
    cifar10_80sec,
    quickstart,
)
from tests.agreement import agree
from tests.reference import network as reference

RECIPES = {
    recipe.__name__.rpartition(".")[2]: recipe
    for recipe in (
        alexnet,
        alexnet_2012_code,
        cifar10_80sec,
        cifar10_18pct,
        cifar10_13pct,
        cifar10_11pct,
    )
}


def photographs(side):
    """Return the two photographs of scikit-learn, (2, side, side, 3) uint8."""
    step = 427 // side
    images = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    return images[:, : side * step : step, 100 : 100 + side * step : step]


def undisturbed(recipe):
    """Return a config whose training step crops, reflects and shades nothing."""
    config = recipe.get_config()
    config.dataset.image_size = config.augment.crop
    config.augment.flip, config.augment.colour_std = False, 0.0
    config.augment.colour_rule = "paper"
    if config.augment.crop < 200 and config.model.init_stds:  # 1e-4 is for hundreds of epochs
        config.model.init_stds = (0.01, *config.model.init_stds[1:])
    return config


def narrow(config):
    """Give the eight layers of a config for ImageNet few features, and the smallest input."""
    config.model.features = tuple(number // 8 for number in config.model.features)
    config.model.hidden = (32, 32)
    config.dataset.image_size = config.augment.crop = 67


def first_state(config, images):
    """Return a state before the first step, with a velocity as after many steps."""
    mean = images.astype(np.float64).mean(0).astype(np.float32)
    state = jax.jit(lambda: create_state(config, Statistics(mean, jnp.zeros((3, 3)))))()
    velocity = jax.tree.map(lambda w: 1e-5 * w[::-1], state.params)
    return state.replace(opt_state=state.opt_state._replace(trace=velocity))


def noted(model, params, images, train=False, dropout_key=None):
    """Return every feature map of the linen network, by the names of the reference."""

    @jax.jit
    def maps(params, images):
        logits, collections = model.apply(
            {"params": params},
            images,
            train=train,
            rngs={"dropout": dropout_key} if train else {},
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return logits, collections["intermediates"]

    _, captured = maps(params, images)
    arrays = {n: v["__call__"] if isinstance(v, dict) else v for n, v in captured.items()}
    return {name: np.asarray(value[0]) for name, value in arrays.items() if name != "__call__"}


def _rates_and_decays(name, params):
    """Return the learning rate and the weight decay of each parameter in the first step."""
    rate, decay = (0.001, 0.004) if name.startswith("cifar10") else (0.01, 5e-4)
    decays = (
        dict.fromkeys(params, decay)
        | {
            "alexnet": {},
            "alexnet_2012_code": {},
            "cifar10_80sec": {"fc4": 0.03, "fc5": 0.03},
            "cifar10_18pct": {"fc4": 1.0},
            "cifar10_13pct": {"conv1": 0.0, "conv2": 0.0},
            "cifar10_11pct": {"conv1": 0.0, "conv2": 0.0, "fc5": 0.01},
        }[name]
    )
    if name == "alexnet":  # the paper makes no difference between weights and biases
        return (
            {layer: {"kernel": rate, "bias": rate} for layer in params},
            {layer: {"kernel": decay, "bias": decay} for layer in params},
        )
    return (
        {layer: {"kernel": rate, "bias": 2 * rate} for layer in params},
        {layer: {"kernel": decays[layer], "bias": 0.0} for layer in params},
    )


@pytest.mark.parametrize(
    ("name", "whole", "accumulate_steps"),
    [
        ("alexnet", False, 1),
        ("alexnet_2012_code", False, 1),
        ("cifar10_80sec", True, 1),
        ("cifar10_18pct", True, 1),
        ("cifar10_13pct", True, 1),
        ("cifar10_11pct", True, 1),
        pytest.param("cifar10_11pct", True, 2, marks=pytest.mark.slow),
        pytest.param("alexnet", True, 1, marks=pytest.mark.slow),
        pytest.param("alexnet_2012_code", True, 1, marks=pytest.mark.slow),
    ],
)
def test_every_layer_and_the_update_follow_the_formulas(name, whole, accumulate_steps):
    config = undisturbed(RECIPES[name])
    config.accumulate_steps = accumulate_steps
    if not whole:
        narrow(config)
    photos, labels = photographs(config.augment.crop), np.array([3, 7], np.int32)
    state = first_state(config, photos)
    images = photos - np.asarray(state.mean_image)
    model, spec = model_lib.from_config(config), config.model.to_dict()
    params = jax.tree.map(np.asarray, state.params)

    _, dropout_key = jax.random.split(step_key(config, state.step))
    in_test = noted(model, params, images)
    in_training = noted(model, params, images, train=True, dropout_key=dropout_key)
    # Where ReLU gives 0, the unit and its gradient are 0 whether it is dropped or not.
    masks = {n.replace("dropout", "fc"): v != 0 for n, v in in_training.items() if "dropout" in n}
    for got, train in ((in_test, False), (in_training, True)):
        wanted = reference.forward(spec, params, images, train=train, masks=masks)
        assert got.keys() == wanted.keys()
        agree(got, wanted, rtol=2e-5, what="training " if train else "test ")

    step = functools.partial(train_step, model=model, config=config, num_train=2)
    of_one_device = jax.jit(jax.vmap(step, axis_name="data"))
    batch = {"image": photos[None], "label": labels[None]}
    after, metrics = of_one_device(jax.tree.map(lambda leaf: leaf[None], state), batch)

    loss, gradients = reference.gradients(spec, params, images, labels, masks=masks)
    rates, decays = _rates_and_decays(name, params)
    velocity = jax.tree.map(np.asarray, state.opt_state.trace)
    params, velocity = reference.momentum_update(
        params, velocity, gradients, rates=rates, decays=decays, momentum=0.9
    )
    found = jax.tree.map(lambda leaf: np.asarray(leaf[0]), (after.opt_state.trace, after.params))
    agree(float(metrics["loss"][0]), loss, rtol=1e-5, what="loss")
    # Where two pixels of a window differ by less than float32 resolves, either may be the maximum.
    agree(found[0], velocity, rtol=3e-3, what="velocity ")
    agree(found[1], params, rtol=1e-3, what="parameters ")


PAPER_STAGES = (
    ("relu", "lrn", "max_pool"),
    ("relu", "lrn", "max_pool"),
    ("relu",),
    ("relu",),
    ("relu", "max_pool"),
)
CODE_STAGES = (
    ("lrn", "max_pool", "relu"),
    ("relu", "lrn", "spatial_norm", "max_pool"),
    ("relu",),
    ("relu",),
    ("max_pool", "relu"),
)
# field: (as described, as the released code has it)
IMAGENET = {
    "batch_size": (128, 128),
    "learning_rate": (0.01, 0.01),
    "momentum": (0.9, 0.9),
    "weight_decay": (5e-4, 5e-4),
    "lr_multipliers": ((), (("*/bias", 2.0),)),
    "weight_decays": ((), (("*/bias", 0.0),)),
    "schedule": ("plateau", "epochs"),
    "plateau.factor": (0.1, 0.1),
    "num_epochs": (90, 90),
    "model.num_classes": (1000, 1000),
    "model.groups": (1, 2),
    "model.cross_layers": (("conv3",), ("conv3",)),
    "model.features": ((96, 256, 384, 384, 256), (96, 256, 384, 384, 256)),
    "model.kernels": ((11, 5, 3, 3, 3), (11, 5, 3, 3, 3)),
    "model.strides": ((4, 1, 1, 1, 1), (4, 1, 1, 1, 1)),
    "model.padding": ((0, 2, 1, 1, 1), (0, 2, 1, 1, 1)),
    "model.ceil_mode": (False, True),
    "model.stages": (PAPER_STAGES, CODE_STAGES),
    "model.hidden": ((4096, 4096), (4096, 4096)),
    "model.dropout": (0.5, 0.5),
    "model.dropout_scaling": ("test", "test"),
    "model.lrn.k": (2.0, 2.0),
    "model.lrn.n": (5, 5),
    "model.lrn.alpha": (1e-4, 1e-4 / 5),
    "model.lrn.beta": (0.75, 0.75),
    "model.lrn.within_groups": (True, True),
    "model.pool.window": (3, 3),
    "model.pool.stride": (2, 2),
    "model.initializer": ("normal", "normal"),
    "model.init_std": (0.01, 0.01),
    "model.init_stds": ((), (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01)),
    "model.biases": ((0, 1, 0, 1, 1, 1, 1, 1), (0, 1, 0, 1, 1, 1, 1, 0)),
    "model.input_scale": (1.0, 1.0),
    "dataset.name": ("imagenet2012", "imagenet2012"),
    "dataset.image_size": (256, 256),
    "augment.crop": (227, 224),
    "augment.flip": (True, True),
    "augment.shared_by": (1, 32),
    "augment.mean_crop": ("same", "centre"),
    "augment.colour_std": (0.1, 0.1),
    "augment.colour_rule": ("paper", "released"),
    "augment.colour_epochs": (None, 66),
    "augment.test_crops": ("ten", "ten"),
}


def test_the_recipes_have_the_published_constants():
    """The values of the paper and of the released code are written out here a second time."""
    recipes = [dict(config_lib.flatten(r.get_config())) for r in (alexnet, alexnet_2012_code)]
    for field, values in IMAGENET.items():
        assert (recipes[0][field], recipes[1][field]) == values, field
    norm = {c: recipes[1][f"model.spatial_norm.{c}"] for c in ("k", "n", "alpha", "beta")}
    assert norm == {"k": 1.0, "n": 5, "alpha": 1e-3 / 25, "beta": 0.75}


def test_the_two_device_recipe_is_the_recipe_of_the_paper_split():
    described, split = (
        dict(config_lib.flatten(r.get_config())) for r in (alexnet, alexnet_two_device)
    )
    changed = {n: v for n, v in split.items() if v != described[n]}
    assert changed == {"parallel": "split", "model.groups": 2}


THIRDS = (("max_pool", "relu"), ("relu", "avg_pool"), ("relu", "avg_pool"))
NORMED = (
    ("max_pool", "relu", "spatial_norm"),
    ("relu", "avg_pool", "spatial_norm"),
    ("relu", "avg_pool"),
)
LOCAL = (("relu", "max_pool"), ("relu", "max_pool"), ("relu",), ("relu",))
LOCAL_NORMED = (("relu", "max_pool", "lrn"), ("relu", "lrn", "max_pool"), ("relu",), ("relu",))
CIFAR = {
    "decays": (
        (0.004, 0.004, 0.004, 0.03, 0.03),
        (0.004, 0.004, 0.004, 1.0),
        (0.0, 0.0, 0.004, 0.004, 0.004),
        (0.0, 0.0, 0.004, 0.004, 0.01),
    ),
    "model.init_stds": (
        (1e-4, 0.01, 0.01, 0.1, 0.1),
        (1e-4, 0.01, 0.01, 0.01),
        (1e-4, 0.01, 0.04, 0.04, 0.01),
        (1e-4, 0.01, 0.04, 0.04, 0.01),
    ),
    "model.layers": (
        ("conv1", "conv2", "conv3"),
        ("conv1", "conv2", "conv3"),
        ("conv1", "conv2", "local3", "local4"),
        ("conv1", "conv2", "local3", "local4"),
    ),
    "model.features": ((32, 32, 64), (32, 32, 64), (64, 64, 32, 32), (64, 64, 64, 32)),
    "model.kernels": ((5, 5, 5), (5, 5, 5), (5, 5, 3, 3), (5, 5, 3, 3)),
    "model.padding": ((2, 2, 2), (2, 2, 2), (2, 2, 1, 1), (2, 2, 1, 1)),
    "model.stages": (THIRDS, NORMED, LOCAL, LOCAL_NORMED),
    "model.strides": ((1, 1, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)),
    "model.pool.window": (3,) * 4,
    "model.pool.stride": (2,) * 4,
    "dataset.image_size": (32,) * 4,
    "model.hidden": ((64,), (), (), ()),
    "model.dropout": (0.0,) * 4,
    "model.ceil_mode": (True,) * 4,
    "augment.crop": (32, 32, 24, 24),
    "augment.flip": (False, False, True, True),
    "augment.mean_crop": ("same", "same", "centre", "centre"),
    "augment.test_crops": ("ten", "ten", "nine", "nine"),
    "augment.colour_std": (0.0,) * 4,
    "num_epochs": (24, 140, 520, 520),
    "milestones": (
        ((21, "*", 0.1),),
        ((121, "*", 0.1), (131, "*", 0.1)),
        ((501, "*", 0.1), (511, "*", 0.1)),
        ((501, "*", 0.1), (511, "*", 0.1)),
    ),
    "parameters": (145_578, 89_578, 1_116_490, 2_112_970),
}


@pytest.mark.parametrize("i", range(4), ids=["80sec", "18pct", "13pct", "11pct"])
def test_the_cifar_recipes_have_the_published_constants(i):
    config = (cifar10_80sec, cifar10_18pct, cifar10_13pct, cifar10_11pct)[i].get_config()
    assert (config.batch_size, config.momentum, config.learning_rate) == (128, 0.9, 0.001)
    found = dict(config_lib.flatten(config))
    for field, values in CIFAR.items():
        if field in found:
            assert found[field] == values[i], field
    params = abstract_state(config).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == CIFAR["parameters"][i]
    layers = layer_names(config.model)
    assert config.model.biases == (0,) * len(layers)
    for layer, decay in zip(layers, CIFAR["decays"][i], strict=True):
        assert optim.weight_decays(config, params)[layer] == {"kernel": decay, "bias": 0.0}
        for name, rate in (("kernel", 0.001), ("bias", 0.002)):
            assert optim.learning_rate(config, 0, 1.0, 50_000, f"{layer}/{name}") == rate
    norm, lrn = config.model.spatial_norm, config.model.lrn
    if i == 1:
        assert (norm.k, norm.n, norm.alpha, norm.beta) == (1.0, 3, 5e-5 / 9, 0.75)
    if i == 3:
        assert (lrn.k, lrn.n, lrn.alpha, lrn.beta) == (1.0, 9, 0.001 / 9, 0.75)


@pytest.mark.parametrize(
    "changes",
    [
        {"cross_layers": ("conv3", "conv4")},
        {"cross_layers": ()},
        {"lrn.within_groups": False},
        {"groups": 1},
    ],
    ids=str,
)
def test_columns_cross_in_the_named_layers(changes):
    """Compares small two-column networks with the reference, forward and backward."""
    config = undisturbed(quickstart)
    config.model.groups, config.model.lrn.alpha, config.model.input_scale = 2, 0.5, 0.02
    config.model.features, config.model.hidden = (8, 8, 8, 8, 8), (16, 16)
    config.model.update_from_flattened_dict(changes)
    photos, labels = photographs(67), np.array([3, 7], np.int32)
    state = first_state(config, photos)
    images = photos - np.asarray(state.mean_image)
    model, spec = model_lib.from_config(config), config.model.to_dict()
    agree(
        noted(model, state.params, images), reference.forward(spec, state.params, images), rtol=1e-5
    )

    @jax.jit
    def gradient(params):
        def mean_loss(params):
            logits = model.apply({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        return jax.grad(mean_loss)(params)

    _, wanted = reference.gradients(spec | {"dropout": 0.0}, state.params, images, labels)
    agree(gradient(state.params), wanted, rtol=1e-4)


def test_the_released_recipe_follows_its_schedule():
    config = alexnet_2012_code.get_config()
    steps_an_epoch = 10009  # of 1,281,167 examples in batches of 128, rounded down

    def rate(*name, epoch):
        # In the middle of an epoch, counted from 1.
        step = int((epoch - 0.5) * steps_an_epoch)
        return float(optim.learning_rate(config, step, 1.0, 1_281_167, *name))

    for epoch, conv1, others in [
        (1, 1e-2, 1e-2),
        (24, 1e-2, 1e-2),
        (25, 1e-3, 1e-3),
        (50, 1e-3, 1e-3),
        (51, 1e-4, 1e-4),
        (66, 1e-4, 1e-4),
        (67, 1e-5, 1e-4),
        (71, 1e-5, 1e-4),
        (72, 0.0, 1e-4),
        (78, 0.0, 1e-4),
        (79, 0.0, 1e-5),
        (90, 0.0, 1e-5),
    ]:
        assert rate("conv1/kernel", epoch=epoch) == pytest.approx(conv1, rel=1e-5)
        assert rate("conv1/bias", epoch=epoch) == pytest.approx(0.02 if epoch < 72 else 0.0)
        assert rate("fc8/kernel", epoch=epoch) == pytest.approx(others, rel=1e-5)
        assert rate("fc8/bias", epoch=epoch) == pytest.approx(0.02)
        assert rate(epoch=epoch) == pytest.approx(others, rel=1e-5)
