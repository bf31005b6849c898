"""Several processes, each with devices and a share of the data of its own, train as one does."""

import socket
import subprocess
import sys

import pytest

from alexnet_jax import checkpoint
from tests import runs
from tests.agreement import agree

# What a script of a user's does on each host.
SCRIPT = """
import pathlib, sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from alexnet_jax.train import train_and_evaluate
from tests import runs
config = runs.tiny_config(sys.argv[3])
config.parallel, config.dataset.cache = sys.argv[5:]
config.model.groups, config.num_steps, config.checkpoint_every_steps = 2, 6, 4
train_and_evaluate(config, pathlib.Path(sys.argv[4]))
"""


@pytest.mark.parametrize(("layout", "cache"), [("pmap", "none"), ("split", "device")])
def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path, data_dir, layout, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SCRIPT, address]
    rest = [str(data_dir), str(tmp_path / "two"), layout, cache]
    processes = [
        subprocess.Popen(
            [*command, str(index), *rest],
            cwd=runs.ROOT,
            env=runs.environment(2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    one = runs.run(
        *runs.TINY,
        f"--workdir={tmp_path / 'one'}",
        f"--config.dataset.data_dir={data_dir}",
        f"--config.parallel={layout}",
        "--config.model.groups=2",
        "--config.num_steps=6",
        devices=4,
    )
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
