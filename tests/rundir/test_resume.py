"""A run that is stopped or killed and resumed ends as one that was never stopped."""

import shutil
import signal
import sys
import time

import pytest

from alexnet_jax.rundir import scalars
from experiments import kills
from tests import runs
from tests.agreement import agree
from tests.prepared import make_folder

# Dropout, crops and shuffling are on; saves and evaluations come often.
COMMAND = (
    *runs.TINY,
    "--config.num_steps=12",
    "--config.batch_size=8",
    "--config.eval_every_epochs=1",
    "--config.checkpoint_every_steps=5",
    "--config.model.num_classes=2",
    "--config.augment.colour_std=0.5",
    "--config.augment.flip=True",
    "--config.dataset.name=folder",
)
SPLIT = ("--config.model.groups=2", "--config.parallel=split")
# Devices, arguments, signals: the first is a stop, a second one ends the process immediately.
LAYOUTS = [
    pytest.param(2, (), (signal.SIGTERM,), id="pmap on 2"),
    pytest.param(8, (), (signal.SIGTERM, signal.SIGINT), id="pmap on 8", marks=pytest.mark.slow),
    pytest.param(2, SPLIT, (signal.SIGINT,), id="split over 2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return COMMAND on 32 images of noise, so that an epoch is 4 steps."""
    path = make_folder(tmp_path_factory.mktemp("images"), train=16, val=5, size=80)
    return (*COMMAND, f"--config.dataset.path={path}", f"--config.dataset.data_dir={path}")


def _assert_same(straight, other):
    """Assert that two finished runs wrote the same, and each step once."""
    assert kills.differences(straight, other) == []
    assert [line["step"] for line in runs.metrics(other)] == list(range(1, 13))
    assert [line["step"] for line in runs.metrics(other, "val")] == [4, 8, 12]
    shown = [(step, tag) for step, tag, _ in scalars(other / "tensorboard")]
    assert len(set(shown)) == len(shown)
    assert {step for step, tag in shown if tag == "train/loss"} == set(range(1, 13))
    assert {step for step, tag in shown if tag == "val/loss"} == {4, 8, 12}


def _signal_at(step, numbers, command, workdir, devices):
    """Run `command`, send it signals after `step`, and return its exit code and stderr."""
    process = runs.start(*command, devices=devices)
    lines = workdir / "metrics.jsonl"
    while process.poll() is None:
        if lines.exists() and f'"step": {step},' in lines.read_text():
            for number in numbers:
                process.send_signal(number)
            break
        time.sleep(0.005)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize(("devices", "arguments", "signals"), LAYOUTS)
def test_a_stopped_run_is_resumed_exactly(tmp_path, command, devices, arguments, signals):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    done = runs.run(*command, *arguments, f"--workdir={straight}", devices=devices)
    assert done.returncode == 0, done.stderr
    command = (*command, *arguments, f"--workdir={stopped}")
    code, err = _signal_at(6, signals, command, stopped, devices)
    last = err.splitlines()[-1]
    if len(signals) == 1:
        assert code == 0, err
        assert last.endswith("of 12; the same command continues"), err
    else:
        assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT), err
        assert last == "stopped immediately; the same command resumes from the last save"
    assert not (stopped / "result.json").exists()
    done = runs.run(*command, devices=devices)
    assert done.returncode == 0, done.stderr
    _assert_same(straight, stopped)


@pytest.mark.slow
def test_a_run_of_eight_devices_is_resumed_on_any_number_of_devices(tmp_path, command):
    command = (*command, "--config.model.groups=2", "--config.learning_rate=0.05")
    done = runs.run(*command, f"--workdir={tmp_path / 'eight'}", "--config.num_steps=4", devices=8)
    assert done.returncode == 0, done.stderr
    others = {"8": (), "1": (), "2": (), "4": (), "2 split": ("--config.parallel=split",)}
    processes = {}
    for name, arguments in others.items():
        shutil.copytree(tmp_path / "eight", tmp_path / name)
        workdir = f"--workdir={tmp_path / name}"
        processes[name] = runs.start(*command, workdir, *arguments, devices=int(name[0]))
    losses = {}
    for name, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        losses[name] = [line["loss"] for line in runs.metrics(tmp_path / name)]
        assert len(losses[name]) == 12
    for name in others:
        agree(losses[name], losses["8"], rtol=1e-5, what=f"on {name} devices ")


def test_a_run_that_is_killed_five_times_is_resumed_exactly(tmp_path, command):
    """The moments are random, as in experiments/kills.py; one of them is in a save."""
    record = kills.stress(
        [sys.executable, "run.py", *command],
        tmp_path,
        kills=5,
        seed=0,
        environment=runs.cpu_devices(1),
    )
    assert record["kills"] == 5
    assert record["in_saves"] >= 1
    _assert_same(tmp_path / "straight", tmp_path / "killed")
