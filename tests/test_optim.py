"""The update rule and the plateau, against the formulas written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import optim


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
