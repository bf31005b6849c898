"""Several processes, each with devices and a share of the data of its own, train as one does."""

import os

import pytest

from alexnet_jax import checkpoint
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


def test_without_a_cluster_there_is_nothing_to_join(tmp_path):
    done = runs.run(*runs.TINY, f"--workdir={tmp_path / 'run'}", "--distributed")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed: JAX finds no cluster to join (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
