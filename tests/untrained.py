"""Run directories as training leaves them, made without training."""

import pathlib

from ml_collections import ConfigDict

from alexnet_jax import checkpoint, data
from alexnet_jax import config as config_lib
from alexnet_jax.state import initial_state


def save_run(workdir: pathlib.Path, config: ConfigDict, dataset: data.Dataset) -> None:
    """Write `config` and the checkpoint of step 0, of initial weights, into `workdir`."""
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir / "config.json")
    run = {
        "config": config.to_dict(),
        "class_names": list(dataset.class_names),
        "data": dataset.identity,
        "seconds": 12.4,
        "rewinds": 0,
        "validation": None,
        "metrics": {"train": None, "val": []},
    }
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, initial_state(config, dataset), run)
