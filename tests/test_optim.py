"""The update rule and the plateau, compared with the formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from alexnet_jax import optim
from alexnet_jax.optim import first_step
from configs import alexnet_2012_code
from tests.agreement import agree

# No epoch of the released schedule's milestones begins with a step: 50 / 7 is 7.14.
NUM_TRAIN, BATCH = 50, 7
STEPS = 643  # 90 epochs
SHAPES = {"conv1/kernel": (4, 3), "conv1/bias": (3,), "fc8/kernel": (3, 5), "fc8/bias": (5,)}
FREEZES = 508  # the first step in epoch 72: 71 * 50 / 7 is 507.14


def numbers(seed, *leading):
    """Return normal numbers of the parameters' shapes by name, float32."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=leading + s).astype(np.float32) for name, s in SHAPES.items()}


def moved(w, v, g, rate, decay):
    """Return w and v after a step of the paper's rule; a rate of 0 changes neither."""
    if rate == 0:
        return w, v
    v = 0.9 * v - decay * rate * w - rate * g
    return w + v, v


def test_the_update_is_that_of_the_paper_also_when_the_rate_drops():
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
        agree(updates["w"], v, rtol=1e-5, what="velocity")
    agree(params["w"], w, rtol=1e-6, what="parameters")


def test_the_rate_is_divided_when_the_error_stops_falling():
    rule = {"factor": 0.1, "patience": 2, "rtol": 0.01, "min_scale": 1e-3}
    state = optim.plateau(**rule).init({})
    scales = []
    for error in [0.9, 0.8, 0.799, 0.8, 0.7, 0.71, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]:
        state = optim.plateau_after(state, error, **rule)
        scales.append(float(state.scale))
    # .799 is not a fall of 1 %; two in a row without one divide; three divisions are the limit
    expected = [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001]
    assert scales == pytest.approx(expected, rel=1e-5)


def rate_by_hand(name, step):
    """Return the rate of the code released in 2012 after step * BATCH examples."""

    def in_epoch(epoch):  # or later; the first is 1
        return step * BATCH >= (epoch - 1) * NUM_TRAIN

    if name.endswith("bias"):
        return 0 if name.startswith("conv1") and in_epoch(72) else 0.02
    rate = 0.01
    if in_epoch(25):
        rate /= 10
    if in_epoch(51):
        rate /= 10
    if name.startswith("conv1") and in_epoch(67):
        rate = 0 if in_epoch(72) else rate / 10
    if in_epoch(79):
        rate /= 10
    return rate


@pytest.fixture(scope="module")
def by_hand():
    """Return w and v of each parameter after each step of the released recipe, float64."""
    w = {name: start.astype(np.float64) for name, start in numbers(0).items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    gradients = numbers(1, STEPS)
    history = []
    for step in range(STEPS):
        for name in SHAPES:
            g, rate = gradients[name][step].astype(np.float64), rate_by_hand(name, step)
            decay = 0 if name.endswith("bias") else 5e-4
            w[name], v[name] = moved(w[name], v[name], g, rate, decay)
        history.append({"w": dict(w), "v": dict(v)})
    return history


@pytest.fixture(scope="module")
def released():
    """Return the rates in each step of the released recipe, and w and v after it."""
    config = alexnet_2012_code.get_config()
    config.batch_size = BATCH

    @jax.jit
    def train_step(step, params, state, gradient):
        rates = optim.learning_rates(config, step, jnp.float32(1), NUM_TRAIN, params)
        decays = optim.weight_decays(config, params)
        optimizer = optim.momentum_sgd(rates, momentum=config.momentum, weight_decay=decays)
        updates, state = optimizer.update(gradient, state, params)
        return rates, optax.apply_updates(params, updates), state

    params, gradients = (unflatten_dict(n, sep="/") for n in (numbers(0), numbers(1, STEPS)))
    state = optim.momentum_sgd(0.0, momentum=0.0, weight_decay=0.0).init(params)
    history = []
    for step in range(STEPS):
        gradient = {layer: {p: g[step] for p, g in gs.items()} for layer, gs in gradients.items()}
        rates, params, state = train_step(step, params, state, gradient)
        trees = {"rate": rates, "w": params, "v": state.trace}
        history.append({key: flatten_dict(tree, sep="/") for key, tree in trees.items()})
    return jax.device_get(history)


def test_the_rates_of_the_released_recipe_follow_the_formula_in_every_step(released):
    want = [{name: rate_by_hand(name, step) for name in SHAPES} for step in range(STEPS)]
    agree([state["rate"] for state in released], want, rtol=1e-6)


@pytest.mark.parametrize("what", ["w", "v"])
def test_the_parameters_of_the_released_recipe_follow_the_formula_in_every_step(
    released, by_hand, what
):
    agree([s[what] for s in released], [s[what] for s in by_hand], rtol=1e-5, what=what)


def test_conv1_is_frozen_with_its_velocity_from_epoch_72_on(released):
    before = released[FREEZES - 1]
    for state in released[FREEZES:]:
        for name in ("conv1/kernel", "conv1/bias"):
            np.testing.assert_array_equal(state["w"][name], before["w"][name])
            np.testing.assert_array_equal(state["v"][name], before["v"][name])
    assert all(np.all(before["v"][name] != 0) for name in ("conv1/kernel", "conv1/bias"))
    assert np.any(released[-1]["w"]["fc8/kernel"] != before["w"]["fc8/kernel"])


def test_a_rate_outside_the_velocity_would_differ_where_it_drops(released):
    """A trace of gradients that is scaled by the rate afterwards falls tenfold with the rate."""
    name = "fc8/kernel"
    params, gradients = numbers(0)[name], numbers(1, STEPS)[name]

    def trace_then_scale(rate):
        return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))

    update = jax.jit(lambda rate, *arguments: trace_then_scale(rate).update(*arguments))
    state = trace_then_scale(0.0).init(params)
    updates = []
    for step, gradient in enumerate(gradients):
        update_, state = update(rate_by_hand(name, step), gradient, state, params)
        params = params + update_
        updates.append(update_)
    drops = [math.ceil((epoch - 1) * NUM_TRAIN / BATCH) for epoch in (25, 51, 79)]
    ours = [state["v"][name] for state in released]
    agree(updates[: drops[0]], ours[: drops[0]], rtol=1e-4, what="before the first drop")
    for drop in drops:
        difference = np.linalg.norm(updates[drop] - ours[drop]) / np.linalg.norm(ours[drop])
        assert difference > 0.5, f"step {drop}"


def test_the_velocity_is_kept_while_the_rate_is_0():
    rates = {"a": [0.1] * 5 + [0.0] * 4 + [0.02] * 5, "b": [0.1] * 14}
    decays = {"a": 0.03, "b": 0.0}
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in rates}
    w = {name: value.astype(np.float64) for name, value in start.items()}
    v = dict.fromkeys(rates, np.zeros((4, 3)))
    params, state = start, optax.TraceState(trace=jax.tree.map(np.zeros_like, start))

    @jax.jit
    def update(rate, gradient, state, params):
        optimizer = optim.momentum_sgd(rate, momentum=0.9, weight_decay=decays)
        return optimizer.update(gradient, state, params)

    got, want = [], []
    for step in range(14):
        g = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in rates}
        rate = {name: values[step] for name, values in rates.items()}
        updates, state = update(rate, g, state, params)
        params = jax.tree.map(np.add, params, updates)
        for name in rates:
            w[name], v[name] = moved(w[name], v[name], g[name], rate[name], decays[name])
        got.append({"w": params, "v": state.trace})
        want.append({"w": dict(w), "v": dict(v)})
    agree(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("epoch", "num_train", "batch_size", "step"),
    [
        (1, 50, 7, 0),
        (2, 50, 7, 8),  # 7 steps are 49 examples
        (25, 50, 4, 300),  # 300 steps are 24 epochs, not an example more
        (2, 3, 7, 1),
        (67, 1_281_167, 128, 660_602),
    ],
)
def test_an_epoch_begins_with_its_first_whole_step(epoch, num_train, batch_size, step):
    assert first_step(epoch, num_train, batch_size) == step
    assert step * batch_size >= (epoch - 1) * num_train
    assert step == 0 or (step - 1) * batch_size < (epoch - 1) * num_train


def test_a_milestone_takes_effect_with_the_first_step_of_its_epoch():
    config = alexnet_2012_code.get_config()
    config.batch_size = 4
    rates = [float(optim.learning_rate(config, step, 1.0, 50)) for step in (299, 300)]
    assert rates == pytest.approx([1e-2, 1e-3], rel=1e-6)


def test_the_rate_without_a_name_ignores_rules_of_single_layers():
    config = alexnet_2012_code.get_config()
    config.batch_size = BATCH
    rates = [float(optim.learning_rate(config, s, 1.0, NUM_TRAIN)) for s in range(STEPS)]
    assert rates == pytest.approx([rate_by_hand("fc8/kernel", s) for s in range(STEPS)], rel=1e-6)


def test_the_scale_of_the_plateau_multiplies_every_rate():
    config = alexnet_2012_code.get_config()
    rates = optim.learning_rates(config, jnp.int32(0), jnp.float32(0.25), 50, {"fc8": {"bias": 0}})
    assert float(rates["fc8"]["bias"]) == pytest.approx(0.25 * 0.02)


def test_the_last_pattern_that_matches_a_parameter_gives_its_decay():
    patterns = (("fc*", 0.03), ("fc9/*", 0.5), ("*/bias", 0.0))
    config = ConfigDict({"weight_decay": 0.004, "weight_decays": patterns})
    want = {
        "conv1": {"kernel": 0.004, "bias": 0.0},
        "fc8": {"kernel": 0.03, "bias": 0.0},
        "fc9": {"kernel": 0.5, "bias": 0.0},
    }
    assert optim.weight_decays(config, want) == want
