"""Run directories as training leaves them, made without training, data or a compilation."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax.state import abstract_state


def save_run(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Write `config` and a checkpoint of step 0, all its arrays random, into `workdir`."""
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir / "config.json")
    run = {
        "config": config.to_dict(),
        "class_names": [str(i) for i in range(config.model.num_classes)],
        "data": "none",
        "seconds": 12.4,
        "rewinds": 0,
        "validation": None,
        "metrics": {"train": None, "val": []},
    }
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype),
        abstract_state(config),
    )
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, run)
