"""The whole network against the float64 NumPy reference, layer by layer, on photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax import optim
from alexnet_jax.state import abstract_state, create_state, step_key
from alexnet_jax.train import train_step
from configs import (
    alexnet,
    alexnet_2012_code,
    cifar10_11pct,
    cifar10_13pct,
    cifar10_18pct,
    cifar10_80sec,
)
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
    """Return two photographs that scikit-learn carries, (2, side, side, 3) uint8."""
    step = 427 // side
    images = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    return images[:, : side * step : step, 100 : 100 + side * step : step]


def undisturbed(recipe):
    """Return a config whose training step crops, reflects and shades nothing."""
    config = recipe.get_config()
    config.dataset.image_size = config.augment.crop
    config.augment.flip, config.augment.colour_std = False, 0.0
    config.augment.colour_rule = "paper"
    if config.augment.crop < 200:  # 1e-4 is for hundreds of epochs: nothing would be left to see
        with config.model.ignore_type():
            config.model.init_std = (0.01, *config.model.init_std[1:])
    return config


def first_state(config, images):
    """Return a state before its first step, with a velocity as after many."""
    mean = images.astype(np.float64).mean(0).astype(np.float32)
    state = jax.jit(lambda: create_state(config, mean, jnp.zeros((3, 3))))()
    velocity = jax.tree.map(lambda w: 1e-5 * w[::-1], state.params)
    return state.replace(opt_state=state.opt_state._replace(trace=velocity))


def noted(model, params, images, train=False, dropout_key=None):
    """Return every array on the way through the linen network, by the reference's names."""

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


@pytest.mark.parametrize("name", RECIPES)
def test_every_layer_and_the_update_are_those_of_the_formulas(name, agree):
    config = undisturbed(RECIPES[name])
    pictures, labels = photographs(config.augment.crop), np.array([3, 7], np.int32)
    state = first_state(config, pictures)
    images = pictures - np.asarray(state.mean_image)
    model, spec = model_lib.from_config(config), config.model.to_dict()
    params = jax.tree.map(np.asarray, state.params)

    _, dropout_key = jax.random.split(step_key(config, state.step))
    in_test = noted(model, params, images)
    in_training = noted(model, params, images, train=True, dropout_key=dropout_key)
    # A unit that ReLU has closed is 0 whether it is dropped or not, and so is its gradient.
    masks = {n.replace("dropout", "fc"): v != 0 for n, v in in_training.items() if "dropout" in n}
    for got, train in ((in_test, False), (in_training, True)):
        wanted = reference.forward(spec, params, images, train=train, masks=masks)
        assert got.keys() == wanted.keys()
        agree(got, wanted, rtol=2e-5, what="training " if train else "test ")

    step = functools.partial(train_step, model=model, config=config, num_train=2)
    of_one_device = jax.jit(jax.vmap(step, axis_name="data"))
    batch = {"image": pictures[None], "label": labels[None]}
    after, metrics = of_one_device(jax.tree.map(lambda leaf: leaf[None], state), batch)

    loss, gradients = reference.gradients(spec, params, images, labels, masks=masks)
    rates, decays = _rates_and_decays(name, params)
    velocity = jax.tree.map(np.asarray, state.opt_state.trace)
    params, velocity = reference.momentum_update(
        params, velocity, gradients, rates=rates, decays=decays, momentum=0.9
    )
    found = jax.tree.map(lambda leaf: np.asarray(leaf[0]), (after.opt_state.trace, after.params))
    agree(float(metrics["loss"][0]), loss, rtol=1e-5, what="loss")
    # Where two pixels of a window differ by less than float32 shows, the other one may be chosen.
    agree(found[0], velocity, rtol=3e-3, what="velocity ")
    agree(found[1], params, rtol=1e-3, what="parameters ")


def test_every_constant_of_the_recipes_is_the_published_one():
    """The numbers of the paper and of the released code, written down a second time."""
    paper, code = alexnet.get_config(), alexnet_2012_code.get_config()
    for config in (paper, code):
        assert (config.batch_size, config.learning_rate, config.momentum) == (128, 0.01, 0.9)
        assert config.weight_decay == 5e-4
        assert config.num_epochs == 90
        lrn = config.model.lrn
        assert (lrn.k, lrn.n, lrn.beta) == (2.0, 5, 0.75)
        assert (config.model.pool.window, config.model.pool.stride) == (3, 2)
        assert config.model.dropout == 0.5
        assert config.model.dropout_scaling == "test"
        assert config.augment.colour_std == 0.1
        assert config.augment.flip
        assert config.dataset.image_size == 256
        assert config.model.cross_layers == ("conv3",)
        assert config.model.input_scale == 1.0
    assert paper.model.lrn.alpha == 1e-4
    assert code.model.lrn.alpha == pytest.approx(2e-5)
    assert code.model.lrn.within_groups
    assert (paper.augment.crop, code.augment.crop) == (227, 224)
    assert paper.model.init_std == 0.01
    assert code.model.init_std == (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01)
    assert paper.model.biases == (0, 1, 0, 1, 1, 1, 1, 1)
    assert code.model.biases == (0, 1, 0, 1, 1, 1, 1, 0)
    norm = code.model.spatial_norm
    assert (norm.k, norm.n, norm.alpha, norm.beta) == (1.0, 5, pytest.approx(4e-5), 0.75)
    assert paper.plateau.factor == 0.1


@pytest.mark.parametrize(
    ("recipe", "decays", "stds"),
    [
        (cifar10_80sec, (0.004, 0.004, 0.004, 0.03, 0.03), (1e-4, 0.01, 0.01, 0.1, 0.1)),
        (cifar10_18pct, (0.004, 0.004, 0.004, 1.0), (1e-4, 0.01, 0.01, 0.01)),
        (cifar10_13pct, (0.0, 0.0, 0.004, 0.004, 0.004), (1e-4, 0.01, 0.04, 0.04, 0.01)),
        (cifar10_11pct, (0.0, 0.0, 0.004, 0.004, 0.01), (1e-4, 0.01, 0.04, 0.04, 0.01)),
    ],
)
def test_every_constant_of_the_cifar_nets_is_the_published_one(recipe, decays, stds):
    config = recipe.get_config()
    assert (config.batch_size, config.momentum, config.learning_rate) == (128, 0.9, 0.001)
    assert config.model.ceil_mode
    assert config.model.init_std == stds
    assert config.model.biases == (0,) * len(stds)
    params = abstract_state(config).params
    for i, layer in enumerate(config_lib.layer_names(config.model)):
        assert optim.weight_decays(config, params)[layer] == {"kernel": decays[i], "bias": 0.0}
        for name, rate in (("kernel", 0.001), ("bias", 0.002)):
            assert optim.learning_rate(config, 0, 1.0, 50_000, f"{layer}/{name}") == rate
    norm, lrn = config.model.spatial_norm, config.model.lrn
    if recipe is cifar10_18pct:
        assert (norm.k, norm.n, norm.beta) == (1.0, 3, 0.75)
        assert norm.alpha == pytest.approx(5e-5 / 9)
    if recipe is cifar10_11pct:
        assert (lrn.k, lrn.n, lrn.beta) == (1.0, 9, 0.75)
        assert lrn.alpha == pytest.approx(0.001 / 9)


def test_the_released_recipe_follows_its_schedule():
    config = alexnet_2012_code.get_config()
    steps_an_epoch = 10009  # of 1,281,167 examples in batches of 128, rounded down

    def rate(name, epoch):
        # In the middle of an epoch, counted from 1.
        step = int((epoch - 0.5) * steps_an_epoch)
        return float(optim.learning_rate(config, step, 1.0, 1_281_167, name))

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
        assert rate("conv1/kernel", epoch) == pytest.approx(conv1, rel=1e-5)
        assert rate("conv1/bias", epoch) == pytest.approx(2 * conv1, rel=1e-5)
        assert rate("fc8/kernel", epoch) == pytest.approx(others, rel=1e-5)
        assert rate("fc8/bias", epoch) == pytest.approx(2 * others, rel=1e-5)
        assert rate(None, epoch) == pytest.approx(others, rel=1e-5)
