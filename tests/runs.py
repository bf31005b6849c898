"""Small runs of the command line in their own processes."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

ROOT = pathlib.Path(__file__).parent.parent
ON_DEVICE = "ALEXNET_JAX_TESTS_ON_DEVICE"  # see experiments/paper/numerics.py

# Each kind of layer of the quickstart on digits, as narrow as they can be, conv3 crossing columns.
FIELDS = {
    "model.layers": ("conv1", "conv2", "conv3"),
    "model.features": (8, 8, 8),
    "model.kernels": (11, 5, 3),
    "model.strides": (4, 1, 1),
    "model.padding": (0, 2, 1),
    "model.stages": (("relu", "lrn", "max_pool"), ("relu",), ("relu", "max_pool")),
    "model.hidden": (16,),
    "model.biases": (0.0,) * 5,
    "batch_size": 16,
}
TINY = (
    "--config=configs/quickstart.py",
    *(f"--config.{field}={value}" for field, value in FIELDS.items()),
)


def tiny_config(data_dir: pathlib.Path | str) -> ConfigDict:
    """Return TINY as a config with its data in `data_dir`."""
    config = quickstart.get_config()
    config.dataset.data_dir = str(data_dir)
    config.update_from_flattened_dict(FIELDS)
    return config


def all_layers(model: ConfigDict) -> None:
    """Give the model of a tiny config the eight layers of the quickstart, equally narrow."""
    whole = quickstart.get_config().model
    names = ("layers", "kernels", "strides", "padding", "stages", "biases")
    model.update({name: whole[name] for name in names})
    model.features, model.hidden = (8,) * 5, (16, 16)


def one_layer(model: ConfigDict) -> None:
    """Leave the model of a tiny config one convolution and one hidden layer: quick to compile."""
    model.layers, model.features, model.kernels = ("conv1",), (4,), (3,)
    model.strides, model.padding, model.stages = (2,), (0,), (("relu", "max_pool"),)
    model.hidden, model.cross_layers, model.biases = (8,), (), (0.0, 0.0, 0.0)


def cpu_devices(devices: int = 1, *, quick: bool = True) -> dict[str, str]:
    """Return the environment of a process that sees `devices` CPU devices.

    `quick` halves the time to compile; the programs are slower and less like those of users. It is
    for short runs that are compared with each other.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags += f" --xla_backend_optimization_level={0 if quick else 1}"
    if quick and metadata.version("jaxlib").startswith("0.10."):  # later ones have no such flag
        flags += " --xla_cpu_use_fusion_emitters=false"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(
    *arguments: str,
    devices: int = 1,
    largest_file: int | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> subprocess.Popen:
    """Start `python run.py` with `arguments`; no file may exceed `largest_file` bytes.

    A variable that `environment` sets to None is unset.
    """
    command = [sys.executable, "run.py", *arguments]
    if largest_file is not None:  # not by preexec_fn, for JAX's threads do not bear a fork
        command = ["sh", "-c", f'ulimit -f {largest_file // 512}; exec "$@"', "sh", *command]
    variables = cpu_devices(devices) | (environment or {})
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run `python run.py` with `arguments` to its end; `options` as for `start`."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise AssertionError in the main thread if the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def metrics(workdir: pathlib.Path, split: str = "train") -> list[dict]:
    """Return the lines of `split` in a run's metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]
