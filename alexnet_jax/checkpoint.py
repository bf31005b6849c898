"""Checkpoints of a run, written by orbax in the background: the best and the two latest are kept.

A checkpoint holds one unreplicated copy of the state, so that it can be restored on any number of
devices, and beside it, as JSON, what the state does not say: config, class names, metrics and
seconds so far, format, the code's version, and shape, type and checksum of every array, for a
flipped bit would go unnoticed.
"""

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from alexnet_jax import aside, integrity, processes, quiet
from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError, NotFinite, limit_met
from alexnet_jax.integrity import DamagedCheckpoint
from alexnet_jax.state import TrainState, abstract_state
from alexnet_jax.version import versions


def _goodness(metrics: dict[str, float | None] | None) -> float:
    error = metrics["top1_error"] if metrics else None
    return -error if isinstance(error, int | float) else -float("inf")


class Checkpoints:
    """The checkpoints in `workdir`/checkpoints. A context that waits for a save in flight.

    Of several processes the first writes and sets aside, and says what the others read. None waits
    for another at a barrier of orbax.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        self.path = workdir / "checkpoints"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a directory; take another --workdir")
        keep = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(get_metric_fn=_goodness, n=1),
        ]
        versions()  # git is asked once, and not in the middle of the training
        me = jax.process_index()
        read_only = read_only or me != 0
        if not read_only:
            aside.move_unreadable_metrics(self.path)
            self.path.mkdir(exist_ok=True)  # orbax leaves that to us where processes are named
        processes.from_first(None)
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
                    create=False,
                    cleanup_tmp_directories=not read_only,  # what a kill has left of a save
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=me, active_processes={me}
                    ),
                ),
            )
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path} holds a damaged checkpoint ({reason}); remove the directory of the"
                " step whose metrics or metadata are no JSON"
            ) from error
        finally:
            logging.set_verbosity(verbosity)

    def __enter__(self) -> Self:
        self._save_failed = False
        self._quiet = quiet.failures_of_orbax()
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        try:
            with self._writing():
                self._manager.close()
        except InputError as of_close:
            error = error or of_close
            if kind is None:  # else what went wrong first is what counts
                raise
        finally:
            del self._manager  # and what it knows of a failed save
            if self._save_failed:  # threads of it may speak up as long as the process lives
                quiet.for_good(self._quiet, error)
            else:
                self._quiet.__exit__(None, None, None)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore has an exception of its own for each back end
            self._save_failed = True
            words = getattr(error, "strerror", None) or str(error)
            reason = " ".join(words.split())[-100:].rpartition(": ")[2]  # the innermost
            remedy = limit_met(error) or "make room there"
            raise InputError(
                f"cannot write {self.path} ({reason}): {remedy}; the same command continues"
            ) from error

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Begin to save the unreplicated `state`, and `run` as JSON.

        `run["validation"]` holds the metrics of this step, or None if it was not evaluated.
        Raises InputError where this save or the one before it cannot be written, and NotFinite,
        before anything is written, where parameters or velocity are not finite.
        """
        for name, leaf in integrity.named_arrays(state):
            if name.startswith(("params", "opt_state")) and not np.isfinite(leaf).all():
                raise NotFinite(f"step {step}: {name} is not finite after the update", since=step)
        if jax.process_index() != 0:
            return
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
        run = integrity.sealed(run, state)  # a copy: it is written while the run goes on
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    run=ocp.args.JsonSave(run),
                ),
                # Always given, for orbax warns of a save without metrics.
                metrics={"top1_error": (run["validation"] or {}).get("top1_error")},
            )

    def check(self) -> None:
        """Raise InputError if the save in flight has failed already; wait for nothing."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait for the save in flight. Raises InputError where it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        self.wait()
        return processes.from_first(self._manager.latest_step())

    def newest_before(self, step: int) -> int | None:
        """Return the step of the newest checkpoint that is older than `step`, or None."""
        self.wait()
        older = (kept for kept in self._manager.all_steps() if kept < step)
        return processes.from_first(max(older, default=None))

    def set_diverged_aside(self, since: int) -> None:
        """Move the checkpoints of step `since` and later, which led to NaN, out of the way."""
        self.wait()
        if jax.process_index() == 0:
            for step in self._manager.all_steps():
                if step >= since:
                    aside.move(self.path / str(step), aside.DIVERGED)
            self._manager.reload()
        processes.from_first(None)  # the others go on when it is done

    def best(self, *, of_all: bool = False) -> int | None:
        """Return the step with the lowest validation error; the newest if none was evaluated.

        A damaged checkpoint is warned of and left out; with `of_all` it raises DamagedCheckpoint.
        """
        self.wait()

        def goodness(step: int) -> tuple[float, int]:
            try:
                return _goodness(self.restore_run(step)["validation"]), step
            except DamagedCheckpoint as error:
                if of_all:
                    raise
                print(f"warning: {error}", file=sys.stderr)
                return -float("inf"), -1

        best = None
        if jax.process_index() == 0:  # the others may list what it has deleted meanwhile
            best = max(self._manager.all_steps(), key=goodness, default=None)
        return processes.from_first(best)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state of `step` on the first local device, and the JSON beside it.

        Args:
          step: one that `latest` or `best` returned, or any other that is kept.
          abstract: the state's tree of jax.ShapeDtypeStruct.

        Raises:
          InputError: it is of another format or another network.
          DamagedCheckpoint: it cannot be read, or is not what was saved.
        """
        run = self.restore_run(step)
        arrays, path = run.pop("arrays"), self.path / str(step)
        integrity.refuse_another_network(path, arrays, abstract)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
        )
        with integrity.reading(path):
            whole = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            state = self._manager.restore(step, args=whole).state
            integrity.check_state(state, step, arrays)
        return state, run

    def restore_run(self, step: int) -> dict[str, Any]:
        """Return the JSON of `step` alone. Raises as `restore`, and where there is no such step."""
        if step not in self._manager.all_steps():
            kept = ", ".join(str(s) for s in self._manager.all_steps())
            raise InputError(f"{self.path} holds no checkpoint of step {step}; it holds {kept}")
        path = self.path / str(step)
        with integrity.reading(path):
            only_run = ocp.args.Composite(run=ocp.args.JsonRestore())
            return integrity.opened(self._manager.restore(step, args=only_run).run, path)

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Return `restore` of the newest checkpoint that is whole, or None if there is none at all.

        One that is damaged is moved out of the way, with a warning that names it. Raises
        InputError where all of them are.
        """
        newest = self._newest_whole(abstract) if jax.process_index() == 0 else None
        step = processes.from_first(int(newest[0].step) if newest else None)
        if newest is None and step is not None:
            self._manager.reload()
            newest = self.restore(step, abstract)
        return newest

    def _newest_whole(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        set_aside = False
        while (step := self._manager.latest_step()) is not None:
            try:
                return self.restore(step, abstract)
            except DamagedCheckpoint as error:
                set_aside = True
                aside.move_damaged(self.path / str(step), str(error.__cause__))
                self._manager.reload()
        damaged, diverged = (self.path.parent / name for name in (aside.DAMAGED, aside.DIVERGED))
        if set_aside or (damaged.exists() and not diverged.exists()):
            raise InputError(f"{self.path}: every checkpoint is damaged; take another --workdir")
        return None


def load(
    workdir: str | pathlib.Path, step: int | Literal["best", "latest"] = "best"
) -> tuple[ConfigDict, TrainState, dict[str, Any]]:
    """Return the config, the state (on one device) and the run's JSON of a checkpoint.

    Raises InputError where `workdir` is no run directory or holds no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        begun = (workdir / "config.json").exists()
        reason = "holds no checkpoint yet" if begun else "is not a run directory"
        raise InputError(f"{workdir} {reason}; train it first")
    if isinstance(step, str) and step not in ("best", "latest"):
        raise InputError(f"step={step!r}: 'best', 'latest' or the number of a kept checkpoint")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        number: int | str | None = step
        if isinstance(step, str):
            newest = step == "latest"
            number = checkpoints.latest() if newest else checkpoints.best(of_all=True)
        if number is None:
            raise InputError(f"{workdir} holds no checkpoint yet; train it first")
        config = config_lib.from_dict(checkpoints.restore_run(int(number))["config"])
        config_lib.validate(config)
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
