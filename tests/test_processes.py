"""Several processes, each with devices and a share of the data of its own, train as one does."""

import os
import re
import signal
import time

import pytest

from alexnet_jax import checkpoint, workdir
from experiments import kills
from tests import runs
from tests.agreement import agree


def slurm(index):
    """Return the variables by which SLURM tells one of two tasks on this host who it is."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),  # JAX's port is a function of it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


@pytest.mark.parametrize(("layout", "cache"), [("pmap", "none"), ("split", "device")])
def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path, data_dir, layout, cache):
    command = [
        *runs.TINY,
        f"--config.dataset.data_dir={data_dir}",
        f"--config.parallel={layout}",
        "--config.model.groups=2",
        "--config.num_steps=6",
    ]
    processes = [
        runs.start(
            *command,
            f"--workdir={tmp_path / 'two'}",
            f"--config.dataset.cache={cache}",
            "--distributed",
            devices=2,
            environment=slurm(index),
        )
        for index in range(2)
    ]
    one = runs.run(*command, f"--workdir={tmp_path / 'one'}", devices=4)
    assert one.returncode == 0, one.stderr
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    lines = [runs.metrics(tmp_path / name) for name in ("one", "two")]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]  # written once
    agree([x["loss"] for x in lines[1]], [x["loss"] for x in lines[0]], rtol=1e-5, what="losses")
    states = [checkpoint.load(tmp_path / name, "latest")[1] for name in ("one", "two")]
    agree(states[1].params, states[0].params, rtol=1e-5, what="parameters ")
    errors = [runs.metrics(tmp_path / name, "val")[-1] for name in ("one", "two")]
    assert errors[0]["top1_error"] == pytest.approx(errors[1]["top1_error"], abs=1 / 359)


def _start_two(*command):
    return [
        runs.start(*command, "--distributed", devices=2, environment=slurm(i)) for i in range(2)
    ]


def _after(step, run, processes):
    """Wait until the two have written the line of `step` or a later one."""
    lines = run / "metrics.jsonl"
    while not (lines.exists() and len(runs.metrics(run)) >= step):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.01)


def _ends(process):
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


def test_stops_and_kills_of_one_of_two_processes_end_both_and_change_nothing(tmp_path, data_dir):
    command = [
        *runs.TINY,
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=400",
        "--config.checkpoint_every_steps=40",
    ]
    straight = _start_two(*command, f"--workdir={tmp_path / 'straight'}")
    assert [_ends(process)[0] for process in straight] == [0, 0]
    run = tmp_path / "disturbed"
    command.append(f"--workdir={run}")

    both = _start_two(*command)
    _after(20, run, both)
    both[1].send_signal(signal.SIGTERM)
    (code, line), (other_code, other_line) = map(_ends, both)
    assert (code, other_code) == (0, 0)
    assert re.fullmatch(r"stopped at step \d+ of 400; the same command continues", line)
    assert line == other_line
    assert len(runs.metrics(run)) == int(line.split()[3]) < 400

    for victim, step in ((1, 150), (0, 280)):
        both = _start_two(*command)
        _after(step, run, both)
        both[victim].kill()
        code, line = _ends(both[1 - victim])
        assert code == 3, line
        assert line.startswith(f"error: process {victim} of 2 has ended"), line
        assert line.endswith("start all of them again: the same command continues"), line
        both[victim].communicate()
    both = _start_two(*command)
    assert [_ends(process)[0] for process in both] == [0, 0]
    assert kills.differences(tmp_path / "straight", run) == []


def test_what_one_process_is_refused_ends_the_other(tmp_path, data_dir):
    command = [*runs.TINY, f"--config.dataset.data_dir={data_dir}", f"--workdir={tmp_path}"]
    with workdir.locked(tmp_path):
        (code, line), (other_code, other_line) = map(_ends, _start_two(*command))
    assert (code, other_code) == (2, 3)
    assert line.startswith(f"error: {tmp_path} is being trained in by process {os.getpid()} on")
    assert other_line.startswith("error: process 0 of 2 has ended (InputError: "), other_line


def test_without_a_cluster_there_is_nothing_to_join(tmp_path):
    done = runs.run(*runs.TINY, f"--workdir={tmp_path / 'run'}", "--distributed")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed: JAX finds no cluster to join (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
