"""Layers that are frozen by a factor of 0 in lr_multipliers."""

import functools

import jax
import numpy as np
import pytest

from alexnet_jax import data, exchange, optim, parallel, restore
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.state import create_state
from alexnet_jax.step import train_step
from configs import finetune
from tests.agreement import agree

STEPS = 3


@pytest.fixture
def trained(config, digits):
    """Return a function from lr_multipliers to the first state, and to the one after each step."""
    config.weight_decay, config.learning_rate = 0.1, 0.05
    batches = data.train_batches(digits, seed=0, batch_size=config.batch_size)
    batches = [next(batches) for _ in range(STEPS)]
    start = jax.jit(lambda: create_state(config, statistics_of(digits, config.augment)))()

    def states(lr_multipliers):
        config.lr_multipliers = lr_multipliers
        step = jax.jit(_step(config))
        found = [start]
        for batch in batches:
            found.append(step(found[-1], batch))
        return found

    return states


def _step(config):
    """Return the step of one device, from a state to a state."""
    step = functools.partial(
        train_step, model=model_lib.from_config(config), config=config, num_train=1438
    )

    def one(state, batch):
        batch = jax.tree.map(lambda x: x[None], batch)
        state, _ = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=parallel.DATA)(
            state, batch
        )
        return state

    return one


def test_frozen_layers_keep_their_values_and_the_others_learn_as_without(trained):
    """Neither the gradient nor a large weight decay moves them, and their velocity stays 0."""
    everything, frozen = trained(()), trained((("conv[12]/*", 0.0), ("fc4/bias", 0.0)))
    still = [("conv1", "kernel"), ("conv1", "bias"), ("conv2", "kernel"), ("fc4", "bias")]
    for state in frozen[1:]:
        for layer, part in still:
            np.testing.assert_array_equal(
                state.params[layer][part], frozen[0].params[layer][part], err_msg=layer
            )
            assert not np.any(state.opt_state.trace[layer][part]), layer
    moving = [("conv3", "kernel"), ("conv3", "bias"), ("fc4", "kernel"), ("fc5", "kernel")]
    for layer, part in moving:  # after one step: later the networks differ below
        agree(
            frozen[1].opt_state.trace[layer][part],
            everything[1].opt_state.trace[layer][part],
            rtol=1e-5,
            what=layer,
        )
        assert np.any(frozen[-1].params[layer][part] != frozen[1].params[layer][part]), layer
    assert np.any(
        everything[1].params["conv1"]["kernel"] != everything[0].params["conv1"]["kernel"]
    )


@pytest.mark.parametrize(
    ("frozen", "convolutions", "products"),
    [
        # Forward there are 3 convolutions, each once for GPUs and once for other devices. Backward
        # each layer adds 3, for the gradients of its weights on GPUs and on TPUs and of its input,
        # which the lowest one computes in vain. Of the matrix products those are counted
        # that come to the forward ones; below the fully connected layers other parts have some.
        ((), 6 + 9, None),
        ((("conv1/*", 0.0),), 6 + 6, None),
        ((("conv*", 0.0),), 6, 3),
        ((("conv*", 0.0), ("fc4/*", 0.0)), 6, 1),  # the linear probe
    ],
)
def test_no_gradient_is_computed_below_the_first_trained_layer(
    config, digits, frozen, convolutions, products
):
    config.lr_multipliers = frozen
    config.augment.colour_std = 0.0
    state = jax.eval_shape(lambda: create_state(config, statistics_of(digits, config.augment)))
    batch = next(data.train_batches(digits, seed=0, batch_size=config.batch_size))
    traced = str(jax.make_jaxpr(_step(config))(state, batch))
    assert traced.count("conv_general_dilated[") == convolutions
    if products is not None:
        crop = config.augment.crop
        images = jax.ShapeDtypeStruct((config.batch_size, crop, crop, 3), np.float32)
        model = model_lib.from_config(config)
        forward = jax.make_jaxpr(model.apply)({"params": state.params}, images)
        assert traced.count("dot_general[") == str(forward).count("dot_general[") + products


def test_a_linear_probe_of_a_run_changes_only_its_last_layer(config, digits, finished_run):
    config.init_from = str(finished_run)
    config.lr_multipliers = (("conv*", 0.0), ("fc4/*", 0.0))
    state = jax.jit(lambda: create_state(config, statistics_of(digits, config.augment)))()
    state = exchange.initialised(state, config)
    batch = next(data.train_batches(digits, seed=0, batch_size=config.batch_size))
    after = jax.jit(_step(config))(state, batch)
    _, pretrained, _ = restore(finished_run)
    for layer, parts in pretrained["params"].items():
        for part, values in parts.items():
            same = np.array_equal(after.params[layer][part], values)
            assert same == (layer != "fc5"), f"{layer}/{part}"


def test_the_recipe_trains_the_last_layer_faster_than_what_was_loaded():
    config = finetune.get_config()
    layers = (*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8")
    for part in ("kernel", "bias"):
        rates = [optim.learning_rate(config, 0, 1.0, 1000, f"{name}/{part}") for name in layers]
        factors = [0.0] + 6 * [0.3] + [1.0]
        assert rates == pytest.approx([config.learning_rate * factor for factor in factors])
