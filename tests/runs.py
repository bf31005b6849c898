"""Runs of the command line in processes of their own, small enough for two cores."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

ROOT = pathlib.Path(__file__).parent.parent

# The eight layers of the quickstart on digits, as narrow as they can be.
TINY = (
    "--config=configs/quickstart.py",
    "--config.model.features=(8,8,8,8,8)",
    "--config.model.hidden=(16,16)",
    "--config.batch_size=16",
)


def tiny_config(data_dir: pathlib.Path | str) -> ConfigDict:
    """Return the same as a config, its data in `data_dir`."""
    config = quickstart.get_config()
    config.dataset.data_dir = str(data_dir)
    config.model.features = (8, 8, 8, 8, 8)
    config.model.hidden = (16, 16)
    config.batch_size = 16
    return config


def cpu_devices(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process that sees `devices` CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    # Half of the time of the tests is compiling, most of that LLVM's.
    flags += " --xla_backend_optimization_level=1"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(
    *arguments: str,
    devices: int = 1,
    largest_file: int | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> subprocess.Popen:
    """Start `python run.py` with `arguments`; no file may grow beyond `largest_file` bytes.

    What `environment` sets to None is not set there.
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


def metrics(workdir: pathlib.Path, split: str = "train") -> list[dict]:
    """Return the lines of `split` in a run's metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]
