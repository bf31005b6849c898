"""A batch in consecutive parts gives the result of the whole batch in less memory."""

import functools

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax import InputError, data, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.rundir import restoring
from alexnet_jax.state import abstract_state, initial_state
from alexnet_jax.step import train_step
from alexnet_jax.train import train_and_evaluate
from configs import alexnet
from tests import runs
from tests.agreement import agree, note, one_value


@pytest.fixture
def gradients(config):
    """Return a random config with which the velocity after one step is the gradient."""
    config.momentum, config.weight_decay, config.learning_rate = 0.0, 0.0, 1.0
    config.model.lrn.alpha, config.model.groups = 0.5, 2
    config.augment.flip, config.augment.shared_by = True, 4
    config.batch_size = 32
    return config


def _after_a_step(config, digits, monkeypatch, devices, accumulate_steps):
    """Return gradient and metrics of the first step on `devices` devices."""
    config.accumulate_steps = accumulate_steps
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:devices])
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    sharding = parallel.sharding(config)
    batch = next(data.train_batches(digits, seed=0, batch_size=config.batch_size))
    model = model_lib.from_config(config, sharding.column_axis)
    step = functools.partial(train_step, model=model, config=config, num_train=1438)
    spread = sharding.map(step, updates_state=True)
    state, metrics = spread(
        sharding.replicate(initial_state(config, statistics_of(digits, config.augment))),
        sharding.shard(batch),
    )
    values = {name: one_value(value) for name, value in metrics.items()}
    return sharding.unreplicate(state).opt_state.trace, values


def test_gradient_and_metrics_equal_those_of_the_whole_batch(gradients, digits, monkeypatch):
    """Dropout, crops, reflections and colour are on; on four devices, and on two pairs."""
    wanted = _after_a_step(gradients, digits, monkeypatch, 1, 1)
    for gradients.parallel, parts in (("pmap", 8), ("split", 4)):
        got = _after_a_step(gradients, digits, monkeypatch, 4, parts)
        agree(got, wanted, rtol=1e-5, what=f"{gradients.parallel} ")


@pytest.mark.slow
def test_a_resumed_run_may_change_the_number_of_parts(config, tmp_path):
    """It also changes between pmap and split, and caches the training set on the devices."""
    config.batch_size, config.parallel, config.model.groups = 48, "split", 2
    config.num_steps = 4
    train_and_evaluate(config, tmp_path / "straight")
    changes = ((2, 3, "none", "split"), (4, 2, "device", "pmap"))
    for steps, parts, cache, sharding in changes:
        config.num_steps, config.accumulate_steps = steps, parts
        config.dataset.cache, config.parallel = cache, sharding
        train_and_evaluate(config, tmp_path / "changed")
    states = [restoring.load(tmp_path / n, "latest")[1] for n in ("changed", "straight")]
    agree(states[0].params, states[1].params, rtol=1e-4, what="parameters ")
    lines = [runs.metrics(tmp_path / n) for n in ("changed", "straight")]
    agree(*([line["loss"] for line in of_run] for of_run in lines), rtol=1e-5, what="losses ")


def test_the_step_needs_less_memory(monkeypatch):
    """The compiler counts it for configs/alexnet.py: 512 images on one device, whole and in 8."""
    config = alexnet.get_config()
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    images = jax.ShapeDtypeStruct((1, 512, 256, 256, 3), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((1, 512), jnp.int32)}
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), abstract_state(config)
    )
    model = model_lib.from_config(config)
    temporaries = []
    for config.accumulate_steps in (1, 8):
        step = functools.partial(train_step, model=model, config=config, num_train=1438)
        spread = parallel.Pmap().map(step, updates_state=True)
        counted = spread.lower(state, batch).compile().memory_analysis()
        temporaries.append(counted.temp_size_in_bytes)
    whole, parts = temporaries
    figure = f"{parts / 1e6:4.0f} of {whole / 1e6:4.0f} MB"
    note("temporaries in 8 parts, of those of the whole batch", parts, figure)
    assert parts < 0.25 * whole


def test_parts_that_do_not_divide_the_rows_of_a_device_are_refused(config):
    config.batch_size, config.accumulate_steps = 48, 4
    with pytest.raises(InputError, match=r"accumulate_steps=4 .* the 6 rows .* 1, 2, 3, 6$"):
        parallel.sharding(config)  # eight devices
    config.parallel = "split"
    parallel.sharding(config)  # four pairs
