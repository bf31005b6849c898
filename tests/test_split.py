"""The network split over a pair of devices equals the two-column network on one device."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import InputError, data, parallel, predict, restore
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.rundir import restoring
from alexnet_jax.state import abstract_state, initial_state
from alexnet_jax.step import train_step
from alexnet_jax.train import train_and_evaluate
from configs import alexnet_two_device
from tests import runs
from tests.agreement import agree, note

CASES = [  # devices, layers that cross, whether of all eight
    (2, ("conv3",), True),
    pytest.param(4, ("conv3",), False, marks=pytest.mark.slow),
    (8, ("conv2", "conv3"), False),
    pytest.param(4, ("conv3",), True, marks=pytest.mark.slow),
    pytest.param(8, ("conv3",), True, marks=pytest.mark.slow),
    pytest.param(8, ("conv3", "conv4"), True, marks=pytest.mark.slow),
    pytest.param(8, (), True, marks=pytest.mark.slow),
]


STEPS = 5


@pytest.fixture
def two_columns(config):
    """Return a config of two columns in which normalisation matters."""
    config.model.groups = 2
    config.model.lrn.alpha = 0.5
    return config


def _step(config, column_axis=None):
    model = model_lib.from_config(config, column_axis)
    return functools.partial(train_step, model=model, config=config, num_train=1438)


def _on_one_device(config):
    """Return the step of the grouped network on one device, (state, batch) -> (state, metrics)."""
    step = jax.jit(jax.vmap(_step(config), axis_name=parallel.DATA))

    def of_one(state, batch):
        one = jax.tree.map(lambda leaf: leaf[None], (state, batch))
        return jax.tree.map(lambda leaf: leaf[0], step(*one))

    return of_one


@pytest.mark.parametrize(("number", "crossing", "whole"), CASES)
def test_gradients_of_split_and_grouped_are_equal(
    two_columns, digits, monkeypatch, number, crossing, whole
):
    """In each of STEPS steps of a run, from the same state, and with dropout.

    With momentum 0 and no decay the velocity after a step is the gradient, times the rate. The loss
    agrees always; the gradient may differ once, where a ReLU's input or the difference of two
    candidates of a pool is as small as the rounding: in about one step in a hundred.
    """
    config = two_columns
    if whole:
        runs.all_layers(config.model)
    config.model.cross_layers = crossing
    config.momentum, config.weight_decay, config.learning_rate = 0.0, 0.0, 0.1
    batches = data.train_batches(digits, seed=0, batch_size=16)
    state = initial_state(config, statistics_of(digits, config.augment))
    grouped = _on_one_device(config)
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:number])
    monkeypatch.setattr(jax, "device_count", lambda: number)
    sharding = parallel.Split()
    split = sharding.map(_step(config, sharding.column_axis), updates_state=True)
    differs = []
    for step, batch in enumerate(itertools.islice(batches, STEPS)):
        wanted, wanted_metrics = grouped(state, batch)
        got, metrics = split(sharding.replicate(state), sharding.shard(batch))
        agree(metrics["loss"], wanted_metrics["loss"], rtol=1e-6, what="loss")
        try:
            agree(metrics, wanted_metrics, rtol=1e-5, what="metrics ")
            agree(got.opt_state.trace, wanted.opt_state.trace, rtol=1e-5, what="gradient ")
            agree(got.params, wanted.params, rtol=1e-5, what="parameters ")
        except AssertionError as error:
            differs.append((step, error))
        state = wanted
    assert len(differs) <= 1, differs
    for leaf in jax.tree.leaves((got.params, got.opt_state)):
        shards = {shard.data.shape for shard in leaf.addressable_shards}
        assert shards == {(*leaf.shape[:-1], leaf.shape[-1] // 2)}


def test_logits_of_split_and_grouped_are_equal(two_columns, digits):
    state = initial_state(two_columns, statistics_of(digits, two_columns.augment))
    images = next(data.train_batches(digits, seed=0, batch_size=16))["image"][:, :67, :67] - 100.0
    grouped = model_lib.from_config(two_columns)
    sharding = parallel.Split()
    column = model_lib.from_config(two_columns, sharding.column_axis)

    def logits(state, images):
        return jax.lax.all_gather(
            column.apply({"params": state.params}, images), parallel.DATA, tiled=True
        )

    got = sharding.map(logits)(
        sharding.replicate(state), sharding.shard({"image": images})["image"]
    )
    wanted = jax.jit(grouped.apply)({"params": state.params}, images)
    agree(got, wanted, rtol=1e-5)
    # The comparison is one of two columns: crossing elsewhere is another network.
    assert wanted.shape == (16, 10)
    assert float(jnp.abs(wanted).max()) > 0.1


@pytest.mark.slow
def test_20_training_steps_of_split_and_grouped_are_equal(tmp_path, data_dir):
    """Dropout, augmentation and shuffling are on; 2, 4 and 8 devices against one."""
    layouts = {1: "pmap", 2: "split", 4: "split", 8: "split"}
    processes = [
        runs.start(
            *runs.TINY,
            f"--workdir={tmp_path / str(devices)}",
            f"--config.dataset.data_dir={data_dir}",
            f"--config.parallel={parallel}",
            "--config.model.groups=2",
            "--config.model.lrn.alpha=0.5",
            "--config.num_steps=20",
            "--config.learning_rate=0.02",
            devices=devices,
        )
        for devices, parallel in layouts.items()
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    lines = [runs.metrics(tmp_path / str(n)) for n in layouts]
    states = [restoring.load(tmp_path / str(n), "latest")[1] for n in layouts]
    losses = [[line["loss"] for line in of_run] for of_run in lines]
    assert len(losses[0]) == 20
    assert abs(losses[0][-1] - losses[0][0]) > 1e-2  # they do change
    for devices, of_run, state in list(zip(layouts, losses, states, strict=True))[1:]:
        agree(of_run, losses[0], rtol=1e-5, what=f"20 losses, {devices} devices")
        agree(state.params, states[0].params, rtol=1e-5, what=f"parameters, {devices} devices ")


@pytest.mark.slow
def test_a_run_moves_between_split_and_pmap(two_columns, tmp_path):
    config = two_columns
    config.checkpoint_every_steps = 2

    def run(name, plan):
        for num_steps, sharding in plan:
            config.num_steps, config.parallel = num_steps, sharding
            train_and_evaluate(config, tmp_path / name)
        return restoring.load(tmp_path / name, "latest")[1]

    wanted = run("pmap", [(6, "pmap")])
    moved = run("moved", [(2, "split"), (4, "pmap"), (6, "split")])
    split = run("split", [(6, "split")])
    again = run("again", [(3, "split"), (6, "split")])
    agree(moved.params, wanted.params, rtol=1e-5, what="moved ")
    agree(split.params, wanted.params, rtol=1e-5, what="split ")
    jax.tree.map(np.testing.assert_array_equal, again, split)  # continued: to the bit

    # What was trained split is used on one device, with the grouped network.
    model, variables, _ = restore(tmp_path / "split")
    assert model.column_axis is None
    assert {d for leaf in jax.tree.leaves(variables) for d in leaf.devices()} == {jax.devices()[0]}
    evaluated = evaluate_checkpoint(tmp_path / "split")
    last = runs.metrics(tmp_path / "split", "val")[-1]
    assert evaluated["top1_error"] == pytest.approx(last["top1_error"], abs=1e-9)
    assert len(predict(tmp_path / "split", np.zeros((72, 72), np.uint8))) == 1


def test_a_device_of_a_pair_holds_about_half(monkeypatch):
    """The compiler counts parameters, velocity and feature maps of configs/alexnet_two_device.py.

    Against the same network on one device; both with batches of 32 images.
    """
    config = alexnet_two_device.get_config()
    state = abstract_state(config)
    images = jax.ShapeDtypeStruct((32, 256, 256, 3), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((32,), jnp.int32)}
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:2])
    sharding = parallel.Split()
    split = sharding.map(_step(config, sharding.column_axis), updates_state=True)
    split = split.lower(state, batch).compile().memory_analysis()

    step = jax.jit(jax.vmap(_step(config), axis_name=parallel.DATA), donate_argnums=(0,))
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), (state, batch)
    )
    grouped = step.lower(*one).compile().memory_analysis()
    # Pictures and the mean image are whole on both; 488 MB are parameters and velocity.
    for kind, most in (("output", 0.502), ("argument", 0.51), ("temp", 0.6)):
        half, whole = (getattr(m, f"{kind}_size_in_bytes") for m in (split, grouped))
        note(f"{kind}, of one device", half, f"{half / 1e6:4.0f} of {whole / 1e6:4.0f} MB")
        assert 0.4 < half / whole < most


def test_an_odd_number_of_devices_is_refused_before_compiling(tmp_path, data_dir):
    done = runs.run(
        *runs.TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.parallel=split",
        "--config.model.groups=2",
        devices=3,
    )
    assert done.returncode == 2
    assert "their number here is 3: take an even one, or parallel='pmap'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_that_pairs_cannot_share_is_refused(two_columns):
    two_columns.parallel, two_columns.batch_size = "split", 10
    with pytest.raises(
        InputError, match="10 cannot be divided over 4 pairs of devices; .* 8 or 12"
    ):
        parallel.sharding(two_columns)
