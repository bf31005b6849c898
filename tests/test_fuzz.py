"""Generated bad input: whatever it is, one line that names it, or the right answer.

Never another exception, a hang, memory without bound, or a wrong picture or network that passes
for a right one. FUZZ=10 tries ten times as many cases. How they ended is shown after the tests.
"""

import functools
import os
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alexnet_jax import InputError, parallel, train
from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.evaluate import eval_steps
from alexnet_jax.fields import FIELDS
from alexnet_jax.state import abstract_state
from configs import alexnet_two_device, cifar10_80sec
from tests import fuzz_configs, outcomes, runs

TIMES = int(os.environ.get("FUZZ", "1"))


def cases(number):
    """Settings of a test of `number` generated cases, the same ones every time."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def refused(kind, error):
    """Count a refusal and return its message, which is one line."""
    message = str(error)
    assert message.isprintable(), message
    assert 10 < len(message) < 3000, message
    assert "Traceback" not in message
    outcomes.note(kind, "refused")
    return message


# --- configs ------------------------------------------------------------------------------------


def _base(name):
    if name == "tiny":
        return runs.tiny_config("/nowhere")
    config = {"two devices": alexnet_two_device, "80 seconds": cifar10_80sec}[name].get_config()
    config.batch_size = 16
    return config


def _trace(config):
    """Trace a training step and both evaluations over the devices; nothing is computed."""
    layout = parallel.layout(config)
    rows, size = config.batch_size // layout.shares, config.dataset.image_size
    state = abstract_state(config)
    shape = (config.batch_size,)
    if isinstance(layout, parallel.Pmap):
        shape = (layout.shares, rows)
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((layout.shares, *leaf.shape), leaf.dtype), state
        )
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    step = functools.partial(
        train.train_step,
        model=model_lib.from_config(config, layout.column_axis),
        config=config,
        num_train=1000,
    )
    after, metrics = jax.eval_shape(layout.spread(step, updates_state=True), state, batch)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert "loss" in metrics
    batch["mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    for evaluation in eval_steps(config, layout):
        jax.eval_shape(evaluation, state, batch)


@cases(350)
@given(st.data())
def test_a_config_is_refused_by_name_or_its_steps_can_be_built(data):
    base = data.draw(st.sampled_from(("tiny", "two devices", "80 seconds")))
    config = _base(base)
    changed = data.draw(fuzz_configs.changes(config))
    _refused_or_traced(config, changed)


def _refused_or_traced(config, changed):
    fuzz_configs.apply(config, changed)
    began = time.monotonic()
    try:
        config_lib.validate(config)
    except InputError as error:
        message = refused("configs", error)
        assert re.search(r"config\.[a-z]|config (has no|lacks the) field", message), message
        assert time.monotonic() - began < 5
        return
    try:
        _trace(config)
    except InputError as error:
        assert "config.batch_size=" in refused("configs, by the devices", error)
        return
    outcomes.note("configs", "accepted, steps traced")
    assert time.monotonic() - began < 120


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e308},
        {"plateau.rtol": 0.0},
        {"model.biases": (10**5000,) * 8},
    ],
    ids=str,
)
def test_configs_that_once_got_through(changed):
    config = _base("tiny")
    fuzz_configs.apply(config, changed)
    with pytest.raises(InputError, match=next(iter(changed)).replace(".", r"\.")):
        config_lib.validate(config)
