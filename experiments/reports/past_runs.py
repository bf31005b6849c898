"""What a run directory says of its run, finished or not, damaged or whole."""

import contextlib
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.rundir import checkpoint, restoring, rewinds
from experiments.reports import metrics
from experiments.runs import run_directories


class Run(NamedTuple):
    """What a run directory says, and what it fails to say."""

    name: str
    fields: dict[str, Any]  # the config's, by dotted name
    lines: metrics.Columns
    result: dict[str, Any] | None  # of result.json; None if the run has not ended
    state: str  # in words
    saved: "Saved"


class Saved(NamedTuple):
    """What the checkpoints say: None where there are none, or where they cannot be read."""

    latest: int | None = None  # step
    seconds: float | None = None  # that the run had taken then
    commit: str = ""
    best: int | None = None  # step
    kernel: np.ndarray | None = None  # (height, width, 3, filters), the best's of the first layer
    trouble: str | None = None


def read(workdir: pathlib.Path, name: str) -> Run:
    """Return the run in `workdir`. Raises InputError where it is no run directory."""
    config = config_lib.load(workdir / "config.json")
    lines, torn = metrics.read(workdir)
    result = run_directories.result(workdir)
    saved = _saved(workdir, config.model.layers[0])
    state = "finished" if result else _state(workdir, lines, saved.latest, config.model.num_classes)
    notes = [state, saved.trouble] if saved.trouble else [state]
    if torn:
        notes.append(f"unreadable lines of metrics.jsonl, left out: {torn}")
    if number := rewinds(workdir):
        notes.append(f"rewinds: {number}")
    return Run(name, dict(config_lib.flatten(config)), lines, result, "; ".join(notes), saved)


def seconds(workdir: pathlib.Path) -> float | None:
    """Return what the run in `workdir` had taken at its latest checkpoint, None without one."""
    with contextlib.suppress(InputError), checkpoint.Checkpoints(workdir, read_only=True) as saved:
        if latest := saved.latest():
            return saved.restore_record(latest).seconds
    return None


def _saved(workdir: pathlib.Path, layer: str) -> Saved:
    saved = Saved()
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        return saved._replace(trouble="no checkpoint")
    try:
        with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
            saved = saved._replace(latest=checkpoints.latest())
            record = checkpoints.restore_record(saved.latest or 0)
            saved = saved._replace(seconds=record.seconds, commit=record.code.get("commit", ""))
        _, state, _ = restoring.load(workdir)
    except InputError as error:
        return saved._replace(trouble=str(error).replace(f"{workdir}/", "").partition(" (")[0])
    kernel = np.asarray(state.params[layer]["kernel"])
    of_images = layer.startswith("conv") and kernel.shape[2] == 3
    return saved._replace(best=int(state.step), kernel=kernel if of_images else None)


def _state(
    workdir: pathlib.Path, lines: metrics.Columns, latest: int | None, num_classes: int
) -> str:
    """Return how far a run without a result has come, and what is known of its end."""
    train = lines["train"]
    if not len(train["step"]):
        return "running or killed, before its first step" if _locked(workdir) else "no step taken"
    where = f"at epoch {train['epoch'][-1]:.2f}"
    if _locked(workdir):
        return f"running or killed, {where}"
    first, last = train["loss"][0], train["loss"][-1]
    if last > 10 * max(first, math.log(num_classes)):  # what was not finite is not written
        return f"failed {where}: the loss was {last:.3g}"
    if latest is not None and latest >= train["step"][-1]:
        return f"stopped {where}"
    return f"failed or killed after epoch {train['epoch'][-1]:.2f}, which was not saved"


def _locked(workdir: pathlib.Path) -> bool:
    return (workdir / "lock").exists()  # trying the lock itself could keep a run from beginning
