"""A number that is not finite: the run stops and names it, or rewinds with a lower rate."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from alexnet_jax.augment import statistics_of
from alexnet_jax.errors import InputError, NotFinite
from alexnet_jax.rundir import RunRecord, checkpoint, restoring, rewinds
from alexnet_jax.rundir.resume import begin, note_rewinds
from alexnet_jax.state import initial_state
from alexnet_jax.train import train_and_evaluate
from tests import runs


def test_the_error_names_the_loss_that_is_not_finite_and_the_last_good_checkpoint(config, tmp_path):
    """The loss of step n is that of the parameters of step n - 1: a good checkpoint is older."""
    runs.all_layers(config.model)
    config.learning_rate, config.num_steps, config.log_every_steps = 1e4, 20, 100
    config.checkpoint_every_steps = 1
    message = (
        r"^step (\d+), training: loss is nan, gradient_norm is nan.*; the last good checkpoint,"
        rf" which is kept: step \d+ in {tmp_path}/checkpoints \(step (\d+) there led to it\); take"
        " a lower config.learning_rate"
    )
    with pytest.raises(NotFinite, match=message) as caught:
        train_and_evaluate(config, tmp_path)
    assert "\n" not in str(caught.value)
    _, state, _ = restoring.load(tmp_path, "latest")
    step = int(state.step)
    assert caught.value.since == step
    assert f"step {step + 1}, training" in str(caught.value)
    assert f"kept: step {step - 1} in" in str(caught.value)
    assert f"(step {step} there" in str(caught.value)
    assert (tmp_path / "checkpoints" / str(step - 1)).is_dir()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_parameters_that_are_not_finite_are_never_saved(config, digits, tmp_path):
    state = initial_state(config, statistics_of(digits, config.augment))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, RunRecord())
        kernel = state.params["conv2"]["kernel"].at[0, 0, 0, 0].set(jnp.inf)
        params = state.params | {"conv2": state.params["conv2"] | {"kernel": kernel}}
        with pytest.raises(NotFinite, match="step 2: params/conv2/kernel is not finite"):
            checkpoints.save(2, dataclasses.replace(state, params=params), RunRecord())
        assert checkpoints.latest() == 1


def test_a_rewind_goes_back_with_a_lower_learning_rate(config, tmp_path, capsys):
    config.num_steps, config.learning_rate = 6, 0.01
    config.checkpoint_every_steps = 3
    train_and_evaluate(config, tmp_path / "good")
    config.learning_rate, config.on_nan, config.rewind_divisor = 1e7, "rewind", 1e9
    result = train_and_evaluate(config, tmp_path / "rewound")
    assert result["rewinds"] == 1
    said = capsys.readouterr().err
    assert "; rewind 1 of 3\n" in said
    assert "rewound: from the start, learning rate divided by 1e+09\n" in said
    good, rewound = (runs.metrics(tmp_path / name) for name in ("good", "rewound"))
    assert [line["step"] for line in rewound] == list(range(1, 7))
    assert [x["loss"] for x in rewound] == pytest.approx([x["loss"] for x in good], rel=1e-4)
    assert [x["learning_rate"] for x in rewound] == pytest.approx([0.01] * 6, rel=1e-5)
    # What the run did is known to its checkpoint, and to the same command afterwards.
    assert restoring.load(tmp_path / "rewound")[2].rewinds == 1
    (tmp_path / "rewound" / "result.json").unlink()
    assert train_and_evaluate(config, tmp_path / "rewound")["rewinds"] == 1


def test_a_rewind_moves_the_checkpoint_that_led_to_it(config, tmp_path, capsys):
    """The same parameters would give the same loss at any learning rate."""
    runs.all_layers(config.model)
    config.num_steps, config.checkpoint_every_steps = 6, 1
    config.learning_rate, config.on_nan, config.rewind_divisor = 1e4, "rewind", 1e9
    result = train_and_evaluate(config, tmp_path)
    assert (result["step"], result["rewinds"]) == (6, 2)  # the first one is not enough
    first, second = sorted(path.name for path in (tmp_path / "diverged_checkpoints").iterdir())
    assert second == f"{first}.1"  # none is overwritten
    aside, good = int(first), int(first) - 1
    assert good >= 1
    said = capsys.readouterr().err
    assert f"step {aside + 1}, training: loss is nan" in said
    which = f"step {aside}, which led to it, is now in diverged_checkpoints"
    for rewind, divisor in ((1, "1e+09"), (2, "1e+18")):
        assert f"rewind {rewind} of 3; {which}\n" in said
        assert f"rewound: from step {good}, learning rate divided by {divisor}\n" in said
    lines = runs.metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([1e4] * good + [1e-14] * (6 - good), rel=1e-5)


def test_the_next_start_knows_of_an_interrupted_rewind(config, digits, tmp_path, capsys):
    """Its only checkpoint is moved, an earlier one had been damaged, and then power fails."""
    config.rewind_divisor = 4.0
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        state, run = begin(config, tmp_path, digits, checkpoints)
        checkpoints.save(3, dataclasses.replace(state, step=jnp.int32(3)), run)
        (tmp_path / "damaged_checkpoints").mkdir()
        note_rewinds(tmp_path, 2)
        checkpoints.set_diverged_aside(since=3)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        state, run = begin(config, tmp_path, digits, checkpoints, rewinds(tmp_path))
    assert int(state.step) == 0
    assert float(state.plateau.scale) == 1 / 16
    assert run.rewinds == 2
    assert capsys.readouterr().err == "rewound: from the start, learning rate divided by 16\n"
    (tmp_path / "rewinds.json").write_text("two")
    with pytest.raises(InputError, match="rewinds.json is not the number of rewinds .*correct it"):
        train_and_evaluate(config, tmp_path)


def test_a_rewind_divides_the_rate_once_per_rewind_after_the_checkpoint(config, digits, tmp_path):
    config.rewind_divisor = 4.0
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        state, run = begin(config, tmp_path, digits, checkpoints, rewinds=1)
        assert (float(state.plateau.scale), run.rewinds) == (0.25, 1)
        checkpoints.save(3, dataclasses.replace(state, step=jnp.int32(3)), run)
        checkpoints.wait()
        for rewinds, scale in ((0, 0.25), (1, 0.25), (2, 1 / 16), (3, 1 / 64)):
            state, run = begin(config, tmp_path, digits, checkpoints, rewinds)
            assert int(state.step) == 3
            assert float(state.plateau.scale) == scale
            assert run.rewinds == max(rewinds, 1)


def test_a_run_stops_after_max_rewinds(config, tmp_path, capsys):
    config.num_steps, config.checkpoint_every_steps = 20, 1
    config.learning_rate, config.on_nan, config.max_rewinds = 1e9, "rewind", 2
    with pytest.raises(NotFinite, match=r"after 2 rewinds; .*kept: none .*more --config.max_rew"):
        train_and_evaluate(config, tmp_path)
    said = capsys.readouterr().err
    assert said.count("rewind 1 of 2;") == said.count("rewind 2 of 2;") == 1
    assert "rewind 3" not in said
    assert not (tmp_path / "result.json").exists()


def test_the_command_line_exits_with_2_on_nan(tmp_path, data_dir):
    done = runs.run(
        *runs.TINY,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.learning_rate=1e9",
        "--config.num_steps=9",
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert (
        last.startswith("error: step ") and "the last good checkpoint, which is kept: none" in last
    )
    assert json.loads((tmp_path / "config.json").read_text())["on_nan"] == "stop"
