"""Whether a run may begin or resume in a directory, from which checkpoint, and its rewinds."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import data
from alexnet_jax.augment import statistics_of
from alexnet_jax.errors import InputError, NotFinite, limit_met
from alexnet_jax.host import open_lock, processes, regular
from alexnet_jax.optim import total_steps
from alexnet_jax.rundir import checkpoint, quarantine, restoring
from alexnet_jax.rundir.record import RunRecord
from alexnet_jax.state import TrainState, abstract_state, initial_state

LAST_GOOD = "the last good checkpoint"  # in the message of a stop, for those who read it
REWINDS = "rewinds.json"  # how often the run has been rewound; not there if never
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
    rewinds: int = 0,
) -> tuple[TrainState, RunRecord]:
    """Return the state that the run continues from, on one device, and its record.

    The learning rate is divided once for each of `rewinds` since the checkpoint was saved.
    """
    record = RunRecord(config.to_dict(), list(dataset.class_names), dataset.identity)
    restored = checkpoints.restore_latest(abstract_state(config))
    if restored is None:
        state = initial_state(config, statistics_of(dataset, config.augment))
    else:
        state, saved = restored
        _refuse_another_run(workdir, config, int(state.step), saved, dataset)
        record = dataclasses.replace(saved, config=record.config, data=record.data)
    divisor = config.rewind_divisor ** max(0, rewinds - record.rewinds)
    plateau = state.plateau._replace(scale=state.plateau.scale / divisor)
    if rewinds > record.rewinds and jax.process_index() == 0:
        since = f"step {int(state.step)}" if restored else "the start"
        print(f"rewound: from {since}, learning rate divided by {divisor:g}", file=sys.stderr)
    record.rewinds = max(rewinds, record.rewinds)
    return dataclasses.replace(state, plateau=plateau), record


def rewinds(workdir: pathlib.Path) -> int:
    """Return how often the run in `workdir` has been rewound.

    Its checkpoints know of it as well, but not before the next one, and they may be set aside.
    """
    path = workdir / REWINDS
    try:
        return int(json.loads(regular(path).read_text())) if path.exists() else 0
    except (ValueError, TypeError, OSError) as error:
        remedy = limit_met(error) or "correct it"
        raise InputError(f"{path} is not the number of rewinds ({error}); {remedy}") from error


def note_rewinds(workdir: pathlib.Path, number: int) -> None:
    """Let `rewinds` return `number`, also after a crash."""
    config_lib.write_json(number, workdir / REWINDS)


def rewind_or_stop(
    config: ConfigDict,
    workdir: pathlib.Path,
    error: NotFinite,
    rewinds: int,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    """Prepare a rewind after `error`, or raise it with advice.

    `rewinds` is how often the run has been rewound, this time included. Raises NotFinite where
    `config.on_nan` is 'stop', or `rewinds` exceeds `config.max_rewinds`.
    """
    newest, good = checkpoints.latest(), checkpoints.newest_before(error.since)
    diverged = newest != good
    if config.on_nan == "rewind" and rewinds <= config.max_rewinds:
        primary, moved = jax.process_index() == 0, ""
        if primary:  # recorded before any checkpoint moves
            note_rewinds(workdir, rewinds)
        if diverged:
            checkpoints.set_diverged_aside(error.since)
            moved = f"; step {newest}, which led to it, is now in {quarantine.DIVERGED}"
        if primary:
            print(f"{error}; rewind {rewinds} of {config.max_rewinds}{moved}", file=sys.stderr)
        return
    tried = f" after {rewinds - 1} rewinds" if config.on_nan == "rewind" else ""
    last_good = f"step {good} in {checkpoints.path}" if good else "none"
    led_to_it = f" (step {newest} there led to it)" if diverged else ""
    raise NotFinite(
        f"{error}{tried}; {LAST_GOOD}, which is kept: {last_good}{led_to_it}; take a"
        " lower config.learning_rate and another --workdir, or rewind with --config.on_nan=rewind"
        + (" and more --config.max_rewinds" if tried else ""),
        error.since,
    ) from error


def _refuse_another_run(
    workdir: pathlib.Path,
    config: ConfigDict,
    latest: int,
    saved: RunRecord,
    dataset: data.Dataset,
) -> None:
    config_lib.refuse_changes(config_lib.from_dict(saved.config), config, workdir)
    same_classes = saved.class_names == list(dataset.class_names)
    if not (same_classes and data.same_set(saved.data, dataset.identity)):
        raise InputError(
            f"{workdir} was trained on other images than {config.dataset.name!r} holds now, or they"
            f" were prepared with another version of Pillow (data set {saved.data}, now"
            f" {dataset.identity}); take another --workdir"
        )
    num_steps = total_steps(config, dataset.num_train)
    if latest > num_steps:
        raise InputError(
            f"{workdir} is at step {latest} already, beyond the {num_steps} of this command;"
            " raise config.num_steps or config.num_epochs, or take another --workdir"
        )


def check(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise InputError unless a run of `config` can start or resume in `workdir`.

    Before any data are prepared; `begin` looks into the checkpoints. Where config.json is lost,
    damaged or changed, the config of the newest checkpoint counts.
    """
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir} cannot be made or written: see {existing}")
    try:
        written = config_lib.load(workdir / "config.json")
    except InputError:
        return
    try:
        config_lib.refuse_changes(written, config, workdir)
    except InputError:
        saved = restoring.newest_config(workdir)
        if saved is None:
            raise
        config_lib.refuse_changes(saved, config, workdir)


def is_new(workdir: pathlib.Path) -> bool:
    """Return whether a run in `workdir` would start at step 0, as process 0 sees it."""
    return processes.from_first(restoring.newest_config(workdir) is None)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keep other processes from training in `workdir`, which exists; `workdir`/lock names this one.

    The system drops the lock of a process that dies. Raises InputError where another holds it.
    """
    path = workdir / "lock"
    with contextlib.ExitStack() as opened:
        file = _lock(path, opened)
        file.truncate(0)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {platform.node()}, since {now}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: pathlib.Path, opened: contextlib.ExitStack) -> TextIO:
    while True:
        file = opened.enter_context(open_lock(path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # By the file at hand: its holder may be removing it.
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(
                f"{path.parent} is being trained in by {owner}; wait until it has ended, or take"
                " another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"warning: the file system of {path.parent} has no locks", file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                return file
        # Its holder has removed it meanwhile, and the lock is of no file.


def finished_result(workdir: pathlib.Path, num_steps: int) -> dict[str, Any] | None:
    """Return the result of a run that ended at `num_steps`, if it is there and whole."""
    try:
        result = json.loads(regular(workdir / "result.json").read_text())
        whole = result["step"] == num_steps and all(result[n] is not None for n in RESULT)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole else None
