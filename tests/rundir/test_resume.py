"""A run that was stopped or killed ends exactly as one that was not."""

import shutil
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.rundir import scalars
from experiments import kills
from tests import runs
from tests.agreement import agree

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
LAYOUTS = {  # devices, arguments, signals: one is a stop, a second one ends the process at once
    "pmap on 2": (2, (), (signal.SIGTERM,)),
    "pmap on 8": (8, (), (signal.SIGTERM, signal.SIGINT)),
    "split over 2": (2, SPLIT, (signal.SIGINT,)),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return COMMAND on 32 pictures of noise, so that 4 steps are an epoch."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("val", 5)):
        for name in ("cat", "dog"):
            (path / split / name).mkdir(parents=True)
            for i in range(number):
                picture = rng.integers(0, 256, (80, 80, 3), np.uint8)
                Image.fromarray(picture).save(path / split / name / f"{i}.png")
    return (*COMMAND, f"--config.dataset.path={path}", f"--config.dataset.data_dir={path}")


def _assert_same(straight, other):
    """Two runs have ended alike in all that they have written, and hold each step once."""
    assert kills.differences(straight, other) == []
    assert [line["step"] for line in runs.metrics(other)] == list(range(1, 13))
    assert [line["step"] for line in runs.metrics(other, "val")] == [4, 8, 12]
    shown = [(step, tag) for step, tag, _ in scalars(other / "tensorboard")]
    assert len(set(shown)) == len(shown)
    assert {step for step, tag in shown if tag == "train/loss"} == set(range(1, 13))
    assert {step for step, tag in shown if tag == "val/loss"} == {4, 8, 12}


def _signal_at(step, numbers, command, workdir, devices):
    """Run `command`, send it signals when it has taken `step`, return code and stderr."""
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stops_change_nothing(tmp_path, command, layout):
    devices, arguments, signals = LAYOUTS[layout]
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
        assert last == "stopped at once; the same command goes on from the last save"
    assert not (stopped / "result.json").exists()
    done = runs.run(*command, devices=devices)
    assert done.returncode == 0, done.stderr
    _assert_same(straight, stopped)


def test_a_checkpoint_of_eight_devices_goes_on_on_any_others(tmp_path, command):
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


def test_five_kills_at_random_moments_change_nothing(tmp_path, command):
    """As experiments/kills.py has it: one of the five while a checkpoint is being written."""
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
