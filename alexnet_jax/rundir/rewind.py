"""When numbers have gone wrong: back to the last good checkpoint, or a stop that names it."""

import pathlib
import sys

import jax
from ml_collections import ConfigDict

from alexnet_jax.errors import NotFinite
from alexnet_jax.rundir import checkpoint, quarantine
from alexnet_jax.rundir import resume as workdir_lib

LAST_GOOD = "the last good checkpoint"  # in what is said of numbers gone wrong, whoever reads it


def rewind_or_stop(
    config: ConfigDict,
    workdir: pathlib.Path,
    error: NotFinite,
    rewinds: int,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    """Make ready to go on after `error`, or raise it with what else the user needs to know.

    `rewinds` is how often the run has been rewound, this time included. Raises NotFinite where
    `config.on_nan` is 'stop', and where that is more often than `config.max_rewinds`.
    """
    newest, good = checkpoints.latest(), checkpoints.newest_before(error.since)
    diverged = newest != good
    if config.on_nan == "rewind" and rewinds <= config.max_rewinds:
        primary, moved = jax.process_index() == 0, ""
        if primary:  # before anything changes that knows how often it has been
            workdir_lib.note_rewinds(workdir, rewinds)
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
        " lower config.learning_rate and another --workdir, or go on with --config.on_nan=rewind"
        + (" and more --config.max_rewinds" if tried else ""),
        error.since,
    ) from error
