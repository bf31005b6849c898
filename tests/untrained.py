"""Run directories as after training, written without training, data or compiling."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.rundir import RESULT, RunRecord, checkpoint
from alexnet_jax.state import abstract_state
from tests import runs


def save_run(
    workdir: pathlib.Path, config: ConfigDict, class_names: Sequence[str] | None = None
) -> None:
    """Write `config` and a checkpoint of step 0, all its arrays random, into `workdir`.

    Without `class_names` the classes are named 0, 1, ...
    """
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir / "config.json")
    names = class_names or [str(i) for i in range(config.model.num_classes)]
    record = RunRecord(config.to_dict(), list(names), "none", seconds=12.4)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype),
        abstract_state(config),
    )
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, record)


def write_run(
    workdir: pathlib.Path, val_errors: Iterable[float], *, ended: bool = True, **changes: Any
) -> pathlib.Path:
    """Write a run with two training lines and the given error per epoch, without a checkpoint.

    `changes` are those of the tiny config.
    """
    config = runs.tiny_config("none")
    config.num_epochs = 4
    config.update_from_flattened_dict(changes)
    workdir.mkdir(parents=True)
    config_lib.save(config, workdir / "config.json")
    write_lines(workdir, val_errors)
    if ended:
        result = dict.fromkeys(RESULT, 0.25) | {"step": 40, "seconds": 3723.4}
        (workdir / "result.json").write_text(json.dumps(result))
    return workdir


def write_lines(workdir: pathlib.Path, val_errors: Iterable[float]) -> None:
    """Write the metrics.jsonl of such a run."""
    lines = []
    for i, error in enumerate(val_errors):
        line = {"loss": 2.0 - i / 8, "top1_error": error, "top5_error": error / 2}
        line |= {"learning_rate": 0.01 / 10 ** (i // 2), "images_per_second": 9.0}
        at = {"step": 10 * i + 5, "epoch": i + 0.5}, {"step": 10 * i + 10, "epoch": i + 1.0}
        lines += [{**at[0], "split": "train", **line}, {**at[1], "split": "train", **line}]
        lines.append({**at[1], "split": "val", **line})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
