"""Checkpoints of a run, written by orbax in the background: the best and the latest are kept.

A checkpoint holds one unreplicated copy of the state, so that it can be restored on any number of
devices, and beside it, as JSON, what the state does not say: config, class names, metrics and
seconds so far, format, the code's version, and shape, type and checksum of every array. The
checksums detect flipped bits.

Orbax writes what a checkpoint holds. The list of checkpoints is read from the directory each time,
because a run may save and delete them while another process reads. A checkpoint gets its name when
it is complete, and loses it before anything of it is deleted.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.errors import InputError, NotFinite
from alexnet_jax.host import processes
from alexnet_jax.rundir import integrity, quarantine
from alexnet_jax.rundir.integrity import DamagedCheckpoint
from alexnet_jax.rundir.record import RunRecord
from alexnet_jax.rundir.version import versions
from alexnet_jax.state import TrainState

_REMOVED = ".removed"  # the suffix of a checkpoint that is being deleted
_REPLACEMENT = ".replacement"  # of one that takes the place of another of its step
_UNFINISHED = ".orbax-checkpoint-tmp"  # orbax's, of one that is being written
KEEP = 2  # the latest; also while one is written, so that a kill leaves one that is complete


class NoSuchStep(InputError):
    """There is no checkpoint of that step, or none any more."""


def _goodness(metrics: dict[str, float] | None) -> float:
    error = metrics["top1_error"] if metrics else None
    return -error if isinstance(error, int | float) else -float("inf")


class Checkpoints:
    """The checkpoints in `workdir`/checkpoints. A context that waits for a save in flight.

    With several processes, process 0 writes and quarantines checkpoints, and tells the others which
    step to read. None waits for another at a barrier of orbax.

    Args:
      workdir: of the run; it exists.
      read_only: nothing is saved, moved or deleted.
      keep: how many of the latest checkpoints are kept, besides the best.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False, keep: int = KEEP) -> None:
        self.path, self._keep = workdir / "checkpoints", keep
        steps(self.path)  # which says if it cannot be read
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a directory; take another --workdir")
        versions()  # git is asked once, and not in the middle of the training
        me = jax.process_index()
        read_only = read_only or me != 0
        if not read_only:
            self.path.mkdir(exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise InputError(f"{self.path} cannot be written; give this user the right to")
            self._put_replacements_in_place()
            for path in list(self.path.iterdir()):  # what a kill has left of a save or a deletion
                if path.name.endswith((_REMOVED, _UNFINISHED)):
                    shutil.rmtree(path, ignore_errors=True)
        processes.from_first(None)
        self._descriptor, self._directory = _for_orbax(self.path)
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self._reader = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        self._writer = None if read_only else self._new_writer(alone)
        self._save_failed = False
        self._saving = "", -1, -float("inf")  # name, step and goodness of the last save

    def _new_writer(self, alone: ocp.options.MultiprocessingOptions) -> ocp.AsyncCheckpointer:
        whole = ocp.AsyncOptions(post_finalization_callback=self._accept)
        handler = ocp.CompositeCheckpointHandler(
            "state",
            "run",
            # The previous version reads these to choose what to keep.
            metrics=ocp.JsonCheckpointHandler("metrics", multiprocessing_options=alone),
            composite_options=ocp.CompositeOptions(
                multiprocessing_options=alone, async_options=whole
            ),
        )
        return ocp.AsyncCheckpointer(handler, async_options=whole, multiprocessing_options=alone)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                with self._writing():
                    self._writer.close()
                self._remove_what_a_save_needed()
        except InputError:
            if kind is None:  # else what went wrong first is what counts
                raise
        finally:
            self._reader.close()
            # Threads of a failed save write as long as the process lives: the number of the
            # descriptor must not become another directory's.
            if self._descriptor is not None and not self._save_failed:
                os.close(self._descriptor)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore has an exception of its own for each back end
            self._save_failed = True
            words = getattr(error, "strerror", None) or str(error)
            reason = " ".join(words.split())[-100:].rpartition(": ")[2]  # the innermost
            remedy = integrity.remedy(error) or "fix the cause"
            raise InputError(
                f"cannot write {self.path} ({reason}): {remedy}; the same command continues"
            ) from error

    def save(self, step: int, state: TrainState, record: RunRecord) -> None:
        """Begin to save the unreplicated `state`, and `record` as JSON.

        Raises InputError where this save or the one before it cannot be written, and NotFinite,
        before anything is written, where parameters or velocity are not finite.
        """
        for name, leaf in integrity.named_arrays(state):
            if name.startswith(("params", "opt_state")) and not np.isfinite(leaf).all():
                raise NotFinite(f"step {step}: {name} is not finite after the update", since=step)
        if self._writer is None:
            return
        self.wait()
        self._remove_what_a_save_needed()
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.path).free
        if needed > free:  # known beforehand, orbax's threads need not fail one by one
            raise InputError(
                f"cannot write {self.path}: a checkpoint needs {needed / 1e6:,.0f} MB, free are"
                f" {free / 1e6:,.0f} MB: make room there; the same command continues"
            )
        # A stop has saved the step unevaluated: never a moment without the one or the other.
        replaces = step in steps(self.path)
        name = f"{step}{_REPLACEMENT}" if replaces else str(step)
        run = integrity.sealed(record.to_json(), state)  # a copy: written while the run continues
        self._saving = name, step, _goodness(record.validation)
        with self._writing():
            self._writer.save(
                self._directory / name,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    run=ocp.args.JsonSave(run),
                    metrics=ocp.args.JsonSave(
                        {"top1_error": (record.validation or {}).get("top1_error")}
                    ),
                ),
            )
        if replaces:
            self.wait()
            self._put_replacements_in_place()

    def _put_replacements_in_place(self) -> None:
        """Give each replacement, which is whole, the name of its step; see `save`."""
        for new in list(self.path.glob(f"*{_REPLACEMENT}")):
            if not re.fullmatch("0|[1-9][0-9]*", new.name.removesuffix(_REPLACEMENT)):
                continue
            step = int(new.name.removesuffix(_REPLACEMENT))
            if (self.path / str(step)).exists():
                shutil.rmtree(self.path / f"{step}{_REMOVED}", ignore_errors=True)
                (self.path / str(step)).rename(self.path / f"{step}{_REMOVED}")
            new.rename(self.path / str(step))
            shutil.rmtree(self.path / f"{step}{_REMOVED}", ignore_errors=True)

    def _accept(self) -> None:
        """Read back what was saved, then delete checkpoints that are no longer kept.

        Orbax calls this in its thread before it gives the checkpoint its name. What raises here is
        a save that failed: nothing is deleted, and what was written never gets its name.
        """
        name, step, goodness = self._saving
        integrity.read_back(self._directory / f"{name}{_UNFINISHED}")
        self._remove_all_but_the_best_and_latest(max(KEEP, self._keep), {step: goodness})

    def _remove_what_a_save_needed(self) -> None:
        """Where only one is kept, delete the one before the latest, which has its name by now."""
        if self._keep < KEEP:
            self._remove_all_but_the_best_and_latest(self._keep, {})

    def _remove_all_but_the_best_and_latest(
        self, latest: int, unfinished: dict[int, float]
    ) -> None:
        """Delete what is neither the best nor of the `latest` newest, `unfinished` included.

        What cannot be read is neither counted nor deleted.
        """
        goodness = {}
        for step in steps(self.path):
            with contextlib.suppress(InputError):
                goodness[step] = self._goodness(step)
        goodness |= unfinished
        best = max(goodness, key=lambda step: (goodness[step], step), default=None)
        kept = {*sorted(goodness)[-latest:], best}
        for step in goodness.keys() - kept:
            self._remove(step)

    def _goodness(self, step: int) -> float:
        return _goodness(self.restore_record(step).validation)

    def _remove(self, step: int) -> None:
        removed = self.path / f"{step}{_REMOVED}"
        (self.path / str(step)).rename(removed)  # so that nobody takes what is left for it
        shutil.rmtree(removed, ignore_errors=True)

    def check(self) -> None:
        """Raise InputError if the save in flight has failed already; wait for nothing."""
        if self._writer is not None:
            with self._writing():
                self._writer.check_for_errors()

    def wait(self) -> None:
        """Wait for the save in flight. Raises InputError where it cannot be written."""
        if self._writer is not None:
            with self._writing():
                self._writer.wait_until_finished()

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        self.wait()
        return processes.from_first(max(steps(self.path), default=None))

    def newest_before(self, step: int) -> int | None:
        """Return the step of the newest checkpoint that is older than `step`, or None."""
        self.wait()
        older = (kept for kept in steps(self.path) if kept < step)
        return processes.from_first(max(older, default=None))

    def set_diverged_aside(self, since: int) -> None:
        """Move the checkpoints of step `since` and later, which led to NaN, out of the way."""
        self.wait()
        if jax.process_index() == 0:
            for step in steps(self.path):
                if step >= since:
                    quarantine.move(self.path / str(step), quarantine.DIVERGED)
        processes.from_first(None)  # the others continue when it is done

    def best(self, *, of_all: bool = False) -> int | None:
        """Return the step with the lowest validation error; the newest if none was evaluated.

        A damaged checkpoint is warned of and left out; with `of_all` it raises DamagedCheckpoint.
        """
        self.wait()

        best = None
        if jax.process_index() == 0:  # the others may list what it has deleted meanwhile
            goodness: dict[int, float] = {}
            for step in steps(self.path):
                try:
                    goodness[step] = self._goodness(step)
                except NoSuchStep:
                    continue
                except DamagedCheckpoint as error:
                    if of_all:
                        raise
                    print(f"warning: {error}", file=sys.stderr)
            best = max(goodness, key=lambda step: (goodness[step], step), default=None)
        return processes.from_first(best)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, RunRecord]:
        """Return the state of `step` on the first local device, and the record beside it.

        Args:
          step: one that `latest` or `best` returned, or any other that is kept.
          abstract: the state's tree of jax.ShapeDtypeStruct.

        Raises:
          InputError: it is of another format or another network.
          DamagedCheckpoint: it cannot be read, or is not what was saved.
        """
        run = self._restore_json(step)
        arrays = run["arrays"]
        integrity.refuse_another_network(self.path / str(step), arrays, abstract)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
        )
        with self._reading(step):
            saved = self._directory / str(step) / "state"
            state = self._reader.restore(saved, args=ocp.args.StandardRestore(target))
            integrity.check_state(state, step, arrays)
            return state, RunRecord.from_json(run)

    def restore_record(self, step: int) -> RunRecord:
        """Return the record of `step`. Raises as `restore`, and where there is no such step."""
        run = self._restore_json(step)
        with self._reading(step):
            return RunRecord.from_json(run)

    def _restore_json(self, step: int) -> dict[str, Any]:
        with self._reading(step) as path:
            return integrity.read_run(path)

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[pathlib.Path]:
        """As integrity.reading, but of what was deleted meanwhile say that it is not there."""
        path = self.path / str(step)
        before = _inode(path)
        try:
            if step not in (kept := steps(self.path)):
                raise NoSuchStep(_no_such_step(self.path, step, kept))
            with integrity.reading(path):
                yield path
        except DamagedCheckpoint:
            if _inode(path) != before:
                raise NoSuchStep(_no_such_step(self.path, step, steps(self.path))) from None
            raise

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, RunRecord] | None:
        """Return `restore` of the newest checkpoint that is whole, or None if there is none at all.

        One that is damaged is moved out of the way, with a warning that names it, and what a kill
        has kept from being deleted is deleted. Raises InputError where all of them are damaged.
        """
        newest = self._newest_whole(abstract) if jax.process_index() == 0 else None
        step = processes.from_first(int(newest[0].step) if newest else None)
        if newest is None and step is not None:
            newest = self.restore(step, abstract)
        return newest

    def _newest_whole(self, abstract: TrainState) -> tuple[TrainState, RunRecord] | None:
        newest, quarantined = None, False
        for step in reversed(steps(self.path)):
            try:
                if newest is None:
                    newest = self.restore(step, abstract)
                else:
                    self._goodness(step)
            except DamagedCheckpoint as error:
                quarantined = True
                quarantine.move_damaged(self.path / str(step), str(error.__cause__))
            except InputError:
                if newest is None:
                    raise
        if newest is not None:
            self._remove_all_but_the_best_and_latest(self._keep, {})
            return newest
        damaged, diverged = (
            self.path.parent / name for name in (quarantine.DAMAGED, quarantine.DIVERGED)
        )
        if quarantined or (damaged.exists() and not diverged.exists()):
            raise InputError(f"{self.path}: every checkpoint is damaged; take another --workdir")
        return None


def steps(path: pathlib.Path) -> list[int]:
    """Return the steps of which there are checkpoints in the directory `path` now, ascending."""
    with integrity.reading(path):
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _inode(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _no_such_step(path: pathlib.Path, step: int, kept: list[int]) -> str:
    return (
        f"{path} holds no checkpoint of step {step}; it holds {', '.join(map(str, kept)) or 'none'}"
    )


def _for_orbax(path: pathlib.Path) -> tuple[int | None, pathlib.Path]:
    """Return a name of the directory `path` that orbax can use, and the descriptor that it needs.

    Orbax treats the path as a glob (`ocdbt_utils.merge_ocdbt_per_process_files`), so `[ ] ? *`
    match other directories or none. Tensorstore takes a backslash for a slash, and names for UTF-8,
    and refuses `..`.
    """
    name = os.path.realpath(path)
    if not re.search(r"[][?*\\\ud800-\udfff]", name) or not path.exists():
        return None, pathlib.Path(name)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    unnamed = pathlib.Path(f"/proc/self/fd/{descriptor}")
    if not unnamed.exists():
        os.close(descriptor)
        raise InputError(
            f"{path}: on this system no checkpoint can be saved or read where the path holds any of"
            " [ ] ? * \\ or what is not UTF-8; take another --workdir"
        )
    return descriptor, unnamed
