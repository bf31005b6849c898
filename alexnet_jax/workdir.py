"""The run directory before a run: may it begin there, go on, or has it ended already?"""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import checkpoint, data
from alexnet_jax import config as config_lib
from alexnet_jax.epochs import total_steps
from alexnet_jax.errors import InputError
from alexnet_jax.state import TrainState, abstract_state, initial_state

# Beside `step`, what result.json holds.
RESULT = (
    "epoch",
    "best_step",
    "top1_error",
    "top5_error",
    "ten_crop_top1_error",
    "ten_crop_top5_error",
    "seconds",
)


def begin(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    checkpoints: checkpoint.Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state to go on from, on one device, and the JSON that goes into checkpoints."""
    run: dict[str, Any] = {
        "class_names": list(dataset.class_names),
        "data": dataset.identity,
        "seconds": 0.0,
        "validation": None,  # the metrics of the checkpoint's step, where it was evaluated
    }
    restored = checkpoints.restore_latest(abstract_state(config))
    if restored is None:
        return initial_state(config, dataset), run
    state, saved = restored
    latest = int(state.step)
    if [saved["class_names"], saved["data"]] != [run["class_names"], run["data"]]:
        raise InputError(
            f"{workdir} was trained on other pictures than {config.dataset.name!r} holds now"
            f" (data set {saved['data']}, now {run['data']}); take another --workdir"
        )
    num_steps = total_steps(config, dataset.num_train)
    if latest > num_steps:
        raise InputError(
            f"{workdir} is at step {latest} already, beyond the {num_steps} of this command;"
            " raise config.num_steps or config.num_epochs, or take another --workdir"
        )
    return state, saved


def check(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise InputError unless a run of `config` can begin or go on in `workdir`."""
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir} cannot be made or written: see {existing}")
    if (workdir / "config.json").exists():
        config_lib.refuse_changes(config_lib.load(workdir / "config.json"), config, workdir)
    elif any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        raise InputError(f"{workdir} has checkpoints but no config.json; take another --workdir")


def finished_result(workdir: pathlib.Path, num_steps: int) -> dict[str, Any] | None:
    """Return the result of a run that ended at `num_steps`, if it is there and whole."""
    try:
        result = json.loads((workdir / "result.json").read_text())
        whole = result["step"] == num_steps and all(result[n] is not None for n in RESULT)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole else None
