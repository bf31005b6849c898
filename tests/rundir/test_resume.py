"""A run that is stopped or killed and resumed ends as one that was never stopped."""

import argparse
import json
import shutil
import signal
import sys
import time

import pytest

from alexnet_jax.errors import InputError
from alexnet_jax.rundir import scalars
from experiments.runs import kills
from experiments.runs.run_differences import differences
from experiments.runs.run_phases import PHASES, Layout, Process
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
    """Two runs have ended alike in all that they have written, and hold each step once."""
    assert differences(straight, other) == []
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


def test_a_kill_in_each_phase_of_a_run_changes_nothing(tmp_path, command):
    """The last ones may come too late: where the machine is busy, the run has ended by then."""
    run_py = (sys.executable, "run.py", *command)
    lengths = dict.fromkeys(PHASES, 0.1)
    layout = Layout(tmp_path, run_py, runs.cpu_devices(1), (4, 8, 12), lengths)
    with Process(layout, tmp_path / "straight", tmp_path / "cache") as process:
        assert process.end() == (0, [])
    run = kills.killed_run(layout, number=0, seed=1)
    assert run["wrong"] == []
    assert len(run["kills"]) >= 3
    assert len({kill["signals"] for kill in run["kills"]}) > 1


@pytest.fixture
def given(tmp_path, command, monkeypatch):
    """Return what the command line of experiments/runs/kills.py says: ten kills on two layouts."""
    for name, value in runs.cpu_devices(1).items():
        monkeypatch.setenv(name, value)
    given = argparse.Namespace(kills=10, minutes=5, layouts=["two", "split"], jobs=2, seed=1)
    given.scratch, given.out, given.arguments = tmp_path, tmp_path / "kills", list(command)
    return given


@pytest.mark.slow
def test_a_run_on_two_devices_that_is_killed_is_resumed_exactly(given):
    record = kills.stress(given)
    assert [run["wrong"] for run in record["runs"]] == [[]] * len(record["runs"])
    assert {run["layout"] for run in record["runs"]} == {"two", "split"}


def test_the_record_of_kills_grows_run_by_run_and_is_resumed(given, monkeypatch):
    def killed_run(layout, number, seed):
        done = {"signals": "SIGKILL", "phase": "train", "code": -9}
        return {"run": number, "layout": "one", "kills": [done] * 4, "wrong": []}

    monkeypatch.setattr(kills, "undisturbed", lambda name, given: None)
    monkeypatch.setattr(kills, "killed_run", killed_run)
    for given.kills, given.minutes, ended in (3, 5, 1), (9, 0, 1), (9, 5, 3), (9, 5, 3):
        kills.stress(given)
        record = json.loads((given.scratch / "kills.json").read_text())
        assert [run["run"] for run in record["runs"]] == list(range(ended))
        assert record["kills"] == 4 * ended
    given.seed += 1
    with pytest.raises(InputError, match="is the record of another command"):
        kills.stress(given)
