"""What a run has saved, read outside of its training: config, state and trained network."""

import contextlib
import os
import pathlib
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.rundir import integrity, weights_file
from alexnet_jax.rundir.checkpoint import Checkpoints, NoSuchStep, steps
from alexnet_jax.rundir.integrity import DamagedCheckpoint
from alexnet_jax.rundir.record import RunRecord
from alexnet_jax.state import TrainState, abstract_state


def load(
    workdir: str | pathlib.Path, step: int | Literal["best", "latest"] = "best"
) -> tuple[ConfigDict, TrainState, RunRecord]:
    """Return the config, the state (on one device) and the run's record of a checkpoint.

    `workdir` may be a weights file instead, whose state has no velocity. Raises InputError where
    `workdir` is not a run directory or holds no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    if workdir.is_file():
        return weights_file.load(workdir)
    steps(workdir / "checkpoints")  # which says if it cannot be read
    if not (workdir / "checkpoints").is_dir():
        begun = (workdir / "config.json").exists()
        reason = "holds no checkpoint yet" if begun else "is not a run directory"
        raise InputError(f"{workdir} {reason}; train it first")
    if isinstance(step, str) and step not in ("best", "latest"):
        raise InputError(f"step={step!r}: 'best', 'latest' or the number of a kept checkpoint")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        while isinstance(step, str):
            newest = step == "latest"
            number = checkpoints.latest() if newest else checkpoints.best(of_all=True)
            if number is None:
                raise InputError(f"{workdir} holds no checkpoint yet; train it first")
            with contextlib.suppress(NoSuchStep):  # a run has deleted it, and has others by now
                return _load(checkpoints, number)
        return _load(checkpoints, int(step))


def _load(checkpoints: Checkpoints, step: int) -> tuple[ConfigDict, TrainState, RunRecord]:
    config = config_of(checkpoints.restore_record(step), checkpoints.path / str(step))
    state, record = checkpoints.restore(step, abstract_state(config))
    return config, state, record


def config_of(record: RunRecord, path: pathlib.Path) -> ConfigDict:
    """Return the config in the `record` of the checkpoint `path`.

    Raises InputError, naming the path, where this version cannot use it.
    """
    config = config_lib.from_dict(record.config)
    config_lib.validate_read(config, path)
    return config


def newest_config(workdir: pathlib.Path) -> ConfigDict | None:
    """Return the config of the newest checkpoint whose JSON can be read, None if there is none."""
    path = workdir / "checkpoints"
    for step in reversed(steps(path)):
        with contextlib.suppress(DamagedCheckpoint), integrity.reading(path / str(step)):
            record = RunRecord.from_json(integrity.read_run(path / str(step)))
            return config_of(record, path / str(step))
    return None


class _Restored(NamedTuple):
    model: model_lib.AlexNet
    variables: dict[str, Any]
    config: ConfigDict


class Restored(_Restored):
    """A trained network: unpacks into `model, variables, config`, and knows two things more.

    Attributes:
      model, variables: `model.apply(variables, images)` gives logits, for float32 images (batch,
        crop, crop, 3) of 0 to 255 less `variables['statistics']['mean_image']`, the mean
        (image_size, image_size, 3) of the training set; `alexnet_jax.preprocess` makes them.
      config: of the run; locked, so that a misspelt field raises AttributeError.
      class_names: label i is class_names[i].
      step: of the checkpoint.
    """

    class_names: tuple[str, ...]
    step: int


def restore(
    workdir: str | os.PathLike[str], step: int | Literal["best", "latest"] = "best"
) -> Restored:
    """Restore a trained network, on one device whatever it was trained on.

    Args:
      workdir: the directory of a run, finished or not, or a file that --mode=export has written as
        safetensors.
      step: the number of a kept checkpoint, 'latest', or 'best': the one with the lowest top-1
        validation error (the latest, if none has been evaluated).

    Returns:
      (model, variables, config), with the attributes `class_names` and `step`.

    Raises:
      InputError: `workdir` is not a run directory, or holds no such checkpoint.
    """
    config, state, record = load(pathlib.Path(workdir), step)
    variables = {"params": state.params, "statistics": {"mean_image": state.mean_image}}
    restored = Restored(model_lib.from_config(config), variables, config)
    restored.class_names, restored.step = tuple(record.class_names), int(state.step)
    return restored
