"""The run directory before a run: may it begin there, go on, or has it ended already?"""

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

from alexnet_jax import checkpoint, data
from alexnet_jax import config as config_lib
from alexnet_jax.disk import open_lock
from alexnet_jax.epochs import total_steps
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.state import TrainState, abstract_state, initial_state

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
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state to go on from, on one device, and the JSON that goes into checkpoints.

    Where the run has been rewound `rewinds` times, and less often when its checkpoint was saved,
    the learning rate is divided for each of the times that the checkpoint does not know of.
    """
    run: dict[str, Any] = {
        "config": config.to_dict(),
        "class_names": list(dataset.class_names),
        "data": dataset.identity,
        "seconds": 0.0,
        "rewinds": 0,
        "validation": None,  # the metrics of the checkpoint's step, where it was evaluated
        "metrics": {"train": None, "val": []},  # so far, as MetricsWriter keeps them
    }
    restored = checkpoints.restore_latest(abstract_state(config))
    if restored is None:
        state = initial_state(config, dataset)
    else:
        state, saved = restored
        _refuse_another_run(config, workdir, dataset, int(state.step), run, saved)
        run = saved | {"config": run["config"]}
    divisor = config.rewind_divisor ** max(0, rewinds - run["rewinds"])
    plateau = state.plateau._replace(scale=state.plateau.scale / divisor)
    if rewinds > run["rewinds"] and jax.process_index() == 0:
        on_from = f"step {int(state.step)}" if restored else "the start"
        print(f"rewound: on from {on_from}, learning rate divided by {divisor:g}", file=sys.stderr)
    run["rewinds"] = max(rewinds, run["rewinds"])
    return dataclasses.replace(state, plateau=plateau), run


def rewinds(workdir: pathlib.Path) -> int:
    """Return how often the run in `workdir` has been rewound.

    Its checkpoints know of it as well, but not before the next one, and they may be set aside.
    """
    path = workdir / REWINDS
    try:
        return int(json.loads(path.read_text())) if path.exists() else 0
    except (ValueError, TypeError, OSError) as error:
        remedy = limit_met(error) or "correct it"
        raise InputError(f"{path} is not the number of rewinds ({error}); {remedy}") from error


def note_rewinds(workdir: pathlib.Path, number: int) -> None:
    """Let `rewinds` return `number`, also after a crash."""
    config_lib.write_json(number, workdir / REWINDS)


def _refuse_another_run(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    latest: int,
    run: dict[str, Any],
    saved: dict[str, Any],
) -> None:
    config_lib.refuse_changes(config_lib.from_dict(saved["config"]), config, workdir)
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


def check(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise InputError unless a run of `config` can begin or go on in `workdir`."""
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir} cannot be made or written: see {existing}")
    if (workdir / "config.json").exists():
        config_lib.refuse_changes(config_lib.load(workdir / "config.json"), config, workdir)


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
        result = json.loads((workdir / "result.json").read_text())
        whole = result["step"] == num_steps and all(result[n] is not None for n in RESULT)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole else None
