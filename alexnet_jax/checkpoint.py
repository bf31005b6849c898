"""Checkpoints of a run, written by orbax in the background: the best and the two latest are kept.

A checkpoint holds one unreplicated copy of the state, so that it can be restored on any number of
devices, and beside it, as JSON, what the state does not say: class names, seconds so far, format,
and the checksum of every array, for a flipped bit would go unnoticed.
"""

import contextlib
import json
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax import quiet
from alexnet_jax.errors import InputError
from alexnet_jax.state import TrainState, abstract_state

FORMAT = 2
ASIDE = "damaged_checkpoints"


class DamagedCheckpoint(InputError):
    """What is on the disk is not what was saved."""


def _goodness(metrics: dict[str, float | None] | None) -> float:
    error = metrics["top1_error"] if metrics else None
    return -float("inf") if error is None else -error


class Checkpoints:
    """The checkpoints in `workdir`/checkpoints. A context that waits for a save in flight."""

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        self.path = workdir / "checkpoints"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a directory; take another --workdir")
        keep = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(get_metric_fn=_goodness, n=1),
        ]
        if not read_only:
            self._set_aside_unreadable_metrics()
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # orbax warns that what is read only is read only
        try:
            self._manager = ocp.CheckpointManager(
                self.path.absolute(),
                item_names=("state", "run"),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                    best_fn=_goodness,
                    read_only=read_only,
                    create=not read_only,
                ),
            )
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path} holds a damaged checkpoint ({reason}); remove the directory of the"
                " step whose metrics/metrics is no JSON"
            ) from error
        finally:
            logging.set_verbosity(verbosity)

    def __enter__(self) -> Self:
        self._quiet = quiet.failures_of_orbax()
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._writing():
                self._manager.close()
        except InputError:
            if kind is None:  # else what went wrong first is what counts
                raise
        finally:
            self._quiet.__exit__(None, None, None)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore has an exception of its own for each back end
            reason = " ".join(str(error).split())[-100:].rpartition(": ")[2]  # the innermost
            raise InputError(
                f"cannot write {self.path} ({reason}): make room there; the same command continues"
            ) from error

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Begin to save the unreplicated `state`, and `run` as JSON.

        `run["validation"]` holds the metrics of this step, or None if it was not evaluated.
        Raises InputError where this save or the one before it cannot be written.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.path).free
        if needed > free:  # known beforehand, orbax's threads need not fail one by one
            raise InputError(
                f"cannot write {self.path}: a checkpoint needs {needed / 1e6:,.0f} MB, free are"
                f" {free / 1e6:,.0f} MB: make room there; the same command continues"
            )
        kept = self._manager.all_steps()
        if step in kept:  # saved when a stop came before its evaluation, which is made up now
            if len(kept) == 1:
                return  # never without a checkpoint, even for a moment
            self._manager.delete(step)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    run=ocp.args.JsonSave(run | {"format": FORMAT, "checksums": _checksums(state)}),
                ),
                # Always given, for orbax warns of a save without metrics.
                metrics={"top1_error": (run["validation"] or {}).get("top1_error")},
            )

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Return the step with the lowest validation error; the newest if none was evaluated."""
        with self._writing():
            self._manager.wait_until_finished()  # one in flight has no metrics yet
        steps = self._manager.all_steps()
        return max(steps, key=lambda s: (_goodness(self._manager.metrics(s)), s), default=None)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state of `step` on the first local device, and the JSON beside it.

        Args:
          step: one that `latest` or `best` returned, or any other that is kept.
          abstract: the state's tree of jax.ShapeDtypeStruct.

        Raises:
          InputError: there is no checkpoint of `step`, or it is of another format.
          DamagedCheckpoint: it cannot be read, or is not what was saved.
        """
        if step not in self._manager.all_steps():
            kept = ", ".join(str(s) for s in self._manager.all_steps())
            raise InputError(f"{self.path} holds no checkpoint of step {step}; it holds {kept}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
        )
        try:
            only_run = ocp.args.Composite(run=ocp.args.JsonRestore())
            run = self._manager.restore(step, args=only_run).run
            if run["format"] == FORMAT:
                whole = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                state = self._manager.restore(step, args=whole).state
                sums = _checksums(state)
                bad = [name for name, value in run.pop("checksums").items() if sums[name] != value]
                if bad:
                    raise ValueError(f"the checksum of {bad[0]} is wrong")
                return state, run
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DamagedCheckpoint(
                f"{self.path / str(step)} cannot be restored ({reason}); take another step, or"
                " continue the training: it goes on from the checkpoint before"
            ) from error
        raise InputError(
            f"{self.path / str(step)} has format {run['format']}, this version reads {FORMAT}; use"
            " the version that wrote it, or train anew in another --workdir"
        )

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Return `restore` of the newest checkpoint that is whole, or None if there is none at all.

        One that is damaged is moved out of the way, with a warning that names it. Raises
        InputError where all of them are.
        """
        while (step := self._manager.latest_step()) is not None:
            try:
                return self.restore(step, abstract)
            except DamagedCheckpoint as error:
                self._set_aside(step, str(error.__cause__))
                self._manager.reload()
        if (self.path.parent / ASIDE).exists():
            raise InputError(f"{self.path}: every checkpoint is damaged; take another --workdir")
        return None

    def _set_aside_unreadable_metrics(self) -> None:
        """Move checkpoints out of the way with whose metrics orbax could not even begin."""
        for metrics in self.path.glob("*/metrics/metrics"):
            try:
                json.loads(metrics.read_text())
            except ValueError as error:
                self._set_aside(int(metrics.parts[-3]), f"{metrics}: {error}")

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.path.parent / ASIDE
        aside.mkdir(exist_ok=True)
        target = aside / str(step)
        if target.exists():
            shutil.rmtree(target)
        (self.path / str(step)).rename(target)
        print(
            f"warning: {self.path / str(step)} is damaged and now in {aside}"
            f" ({' '.join(reason.split())[:200]}); going on from the checkpoint before it",
            file=sys.stderr,
        )


def _checksums(state: TrainState) -> dict[str, int]:
    """Return the CRC-32 of the bytes of every array of `state`, by its name."""
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).data)
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def load(
    workdir: str | pathlib.Path, step: int | Literal["best", "latest"] = "best"
) -> tuple[ConfigDict, TrainState, dict[str, Any]]:
    """Return the config, the state (on one device) and the run's JSON of a checkpoint.

    Raises InputError where `workdir` is no run directory or holds no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    config = config_lib.load(workdir / "config.json")
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds no checkpoint yet; train it first")
    if isinstance(step, str) and step not in ("best", "latest"):
        raise InputError(f"step={step!r}: 'best', 'latest' or the number of a kept checkpoint")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        number = {"best": checkpoints.best(), "latest": checkpoints.latest()}.get(str(step), step)
        if number is None:
            raise InputError(f"{workdir} holds no checkpoint yet; train it first")
        state, run = checkpoints.restore(int(number), abstract_state(config))
    return config, state, run


def restore(
    workdir: str | pathlib.Path, step: int | Literal["best", "latest"] = "best"
) -> tuple[model_lib.AlexNet, dict[str, Any], ConfigDict]:
    """Restore a trained network, on one device whatever it was trained on.

    Args:
      workdir: the directory of a run, finished or not.
      step: the number of a kept checkpoint, 'latest', or 'best': the one with the lowest top-1
        validation error (the latest, if none has been evaluated).

    Returns:
      (model, variables, config): `model.apply(variables, images)` gives logits, for float32 images
      (batch, crop, crop, 3) of 0 to 255 less `variables['statistics']['mean_image']`, the mean
      (image_size, image_size, 3) of the training set.

    Raises:
      InputError: `workdir` is no run directory, or holds no such checkpoint.
    """
    config, state, _ = load(workdir, step)
    variables = {"params": state.params, "statistics": {"mean_image": state.mean_image}}
    return model_lib.from_config(config), variables, config
