"""A run that begins with the weights of another one: what fits is taken, the rest initialised."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import InputError, exchange, restore
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.rundir import restoring
from alexnet_jax.state import initial_state
from alexnet_jax.train import train_and_evaluate
from tests import runs
from tests.untrained import save_run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the directory of an untrained run, all of whose arrays are random."""
    path = tmp_path_factory.mktemp("source") / "run"
    save_run(path, runs.tiny_config("none"))
    return path


def _equal(tree, other):
    return jax.tree.map(np.array_equal, tree, other)


def test_a_run_begins_with_all_layers_and_the_mean_of_another(config, digits, source, capsys):
    config.init_from = str(source)
    fresh = initial_state(config, statistics_of(digits, config.augment))
    state = exchange.initialised(fresh, config)
    _, saved, _ = restoring.load(source)
    assert all(jax.tree.leaves(_equal(state.params, saved.params)))
    assert np.array_equal(state.mean_image, saved.mean_image)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))  # no velocity
    assert np.array_equal(state.colour, fresh.colour)
    assert capsys.readouterr().err == (
        f"init_from={source}: loaded conv1, conv2, conv3, fc4, fc5, the mean image\n"
    )


def test_what_does_not_fit_is_initialised_as_without_it_and_named(config, digits, source, capsys):
    config.init_from, config.model.num_classes, config.dataset.image_size = str(source), 3, 70
    fresh = initial_state(config, statistics_of(digits, config.augment))
    fresh = dataclasses.replace(fresh, mean_image=fresh.mean_image[:70, :70])
    config.model.lrn.k = 1.5
    state = exchange.initialised(fresh, config)
    same = {
        name: all(_equal(state.params[name], fresh.params[name]).values()) for name in fresh.params
    }
    assert same == {"conv1": False, "conv2": False, "conv3": False, "fc4": False, "fc5": True}
    assert np.array_equal(state.mean_image, fresh.mean_image)
    assert capsys.readouterr().err.splitlines() == [
        f"init_from={source}: loaded conv1, conv2, conv3, fc4",
        f"init_from={source}: initialised fc5 (there (16, 10), in config.model (16, 3)), the"
        " mean image (another size)",
        f"warning: init_from={source} was trained with model.lrn.k=2.0 (now 1.5)",
    ]


@pytest.mark.parametrize("scaling", ["test", "train"])
def test_another_dropout_is_another_function_if_outputs_are_scaled(
    config, digits, tmp_path, capsys, scaling
):
    config.model.dropout_scaling, config.model.dropout = scaling, 0.5
    save_run(tmp_path / "scaled", config)
    config.init_from, config.model.dropout = str(tmp_path / "scaled"), 0.25
    exchange.initialised(initial_state(config, statistics_of(digits, config.augment)), config)
    warned = "was trained with model.dropout=0.5 (now 0.25)" in capsys.readouterr().err
    assert warned == (scaling == "test")


@pytest.mark.parametrize("parallel", ["pmap", pytest.param("split", marks=pytest.mark.slow)])
def test_only_a_new_run_begins_there_and_its_config_says_so(config, source, tmp_path, parallel):
    """With a rate of almost 0 the run ends with what it began with."""
    config.init_from, config.num_steps, config.learning_rate = str(source), 1, 1e-20
    config.parallel, config.model.groups = parallel, 2
    twin = tmp_path / "two_columns"
    save_run(twin, config)
    config.init_from = str(twin / "checkpoints" / "0")
    assert train_and_evaluate(config, tmp_path / "run")["step"] == 1
    first, last = restore(twin)[1], restore(tmp_path / "run")[1]
    assert all(jax.tree.leaves(_equal(first, last)))

    shutil.rmtree(twin)  # is not needed any more
    assert train_and_evaluate(config, tmp_path / "run")["step"] == 1
    config.init_from = ""
    with pytest.raises(InputError, match="holds a run with init_from="):
        train_and_evaluate(config, tmp_path / "run")


def test_load_gives_what_restore_gives(source):
    model, variables, config = restore(source)
    loaded = exchange.load(source, config)
    assert all(jax.tree.leaves(_equal(loaded, variables)))
    assert model_lib.from_config(config) == model


def test_load_refuses_another_network(source, config):
    config.model.num_classes = 3
    with pytest.raises(InputError, match=r"of another network: fc5 \(there \(16, 10\), in"):
        exchange.load(source, config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"config.init_from=\S*nowhere does not exist; give a run directory"),
        ("other", r"no layer fits: conv1 \(there \(9, 9, 3, 8\), in config.model \(11, 11, 3, 8\)"),
        ("empty", "empty is not a run directory"),
        ("source/checkpoints/7", "holds no checkpoint of step 7; it holds 0"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_anything_is_made(
    config, source, tmp_path, name, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "source").symlink_to(source)
    if name == "other":
        other = runs.tiny_config("none")
        other.model.kernels, other.model.features = (9, 7, 1), (8, 9, 7)
        other.model.hidden, other.model.num_classes = (15,), 9
        save_run(tmp_path / "other", other)
    config.init_from, config.dataset.data_dir = str(tmp_path / name), str(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


def test_weights_that_are_not_finite_are_refused(config, digits, tmp_path, monkeypatch):
    save_run(tmp_path / "run", config)
    _, state, record = restoring.load(tmp_path / "run")
    state.params["conv2"]["bias"] = state.params["conv2"]["bias"].at[3].set(np.nan)
    monkeypatch.setattr(restoring, "load", lambda *_: (config, state, record))
    config.init_from = str(tmp_path / "run")
    with pytest.raises(InputError, match="run: conv2/bias is not finite"):
        exchange.check(config)
