"""The update rule and the plateau, against the formulas written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import optim
from configs import (
    alexnet_2012_code,
    cifar10_11pct,
    cifar10_13pct,
    cifar10_18pct,
    cifar10_80sec,
)

# No epoch of the released schedule's milestones begins with a step: 50 / 7 is 7.14.
NUM_TRAIN, BATCH = 50, 7
STEPS = 643  # 90 epochs
SHAPES = {"conv1": {"kernel": (2, 3), "bias": (3,)}, "fc8": {"kernel": (3, 2), "bias": (2,)}}


def test_the_update_is_the_papers_also_when_the_rate_drops():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, 3))
    v = np.zeros_like(w)
    params = {"w": jnp.asarray(w, jnp.float32)}
    state = optim.momentum_sgd(0.0, momentum=0.9, weight_decay=0.0).init(params)
    update = jax.jit(
        lambda g, s, p, lr: optim.momentum_sgd(lr, momentum=0.9, weight_decay=5e-4).update(g, s, p)
    )
    for step in range(30):
        lr = 0.1 / 10 ** (step // 10)
        g = rng.normal(size=w.shape)
        v = 0.9 * v - 5e-4 * lr * w - lr * g
        w = w + v
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params, lr)
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(updates["w"], v, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_the_rate_is_divided_when_the_error_stops_falling():
    config = ConfigDict({"factor": 0.1, "patience": 2, "rtol": 0.01, "min_scale": 1e-3})
    transform = optim.plateau(config)
    state = transform.init({})
    scales = []
    for error in [0.9, 0.8, 0.799, 0.8, 0.7, 0.71, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]:
        _, state = transform.update({}, state, value=jnp.float32(error))
        scales.append(float(state.scale))
    # .799 is not a fall of 1 %; two in a row without one divide; three divisions are the limit
    expected = [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001]
    assert scales == pytest.approx(expected, rel=1e-5)


def _moved(w, v, g, rate, decay):
    """Return w and v after a step of the paper's rule, float64; a rate of 0 moves neither."""
    if rate == 0:
        return w, v
    v = 0.9 * v - decay * rate * w - rate * g
    return w + v, v


def _released_rate(layer, parameter, step):
    """Return the rate of the code released in 2012 after step * BATCH examples, by hand."""

    def in_epoch(epoch):  # or later; the first is 1
        return step * BATCH >= (epoch - 1) * NUM_TRAIN

    rate = 0.01 if parameter == "kernel" else 0.02
    if in_epoch(25):
        rate /= 10
    if in_epoch(51):
        rate /= 10
    if layer == "conv1" and in_epoch(67):
        rate = 0 if in_epoch(72) else rate / 10
    if in_epoch(79):
        rate /= 10
    return rate


@pytest.fixture(scope="module")
def released():
    """Return what 90 epochs of the released recipe do, by alexnet_jax.optim and by hand.

    Two lists with an entry for each step: the rates, and w and v after it, by parameter.
    """
    config = alexnet_2012_code.get_config()
    config.batch_size = BATCH

    @jax.jit
    def train_step(step, params, state, gradient):
        rates = optim.learning_rates(config, step, jnp.float32(1), NUM_TRAIN, params)
        decays = optim.weight_decays(config, params)
        optimizer = optim.momentum_sgd(rates, momentum=config.momentum, weight_decay=decays)
        updates, state = optimizer.update(gradient, state, params)
        return rates, optax.apply_updates(params, updates), state

    gradients = _gradients()
    w = {layer: {p: g[0] for p, g in gs.items()} for layer, gs in gradients.items()}
    v = jax.tree.map(np.zeros_like, w)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)
    state = optim.momentum_sgd(0.0, momentum=0.0, weight_decay=0.0).init(params)
    got, want = [], []
    for step in range(STEPS):
        gradient = jax.tree.map(lambda g: g[step], gradients)  # noqa: B023
        rates, params, state = train_step(step, params, state, gradient)
        got.append({"rate": rates, "w": params, "v": state.trace})
        by_hand = {"rate": {}, "w": {}, "v": {}}
        for layer, parameters in SHAPES.items():
            for key in by_hand:
                by_hand[key][layer] = {}
            for p in parameters:
                rate = _released_rate(layer, p, step)
                decay = 5e-4 if p == "kernel" else 0
                g = gradient[layer][p].astype(np.float64)
                w[layer][p], v[layer][p] = _moved(w[layer][p], v[layer][p], g, rate, decay)
                by_hand["rate"][layer][p] = np.float64(rate)
                by_hand["w"][layer][p], by_hand["v"][layer][p] = w[layer][p], v[layer][p]
        want.append(by_hand)
    return jax.device_get(got), want
