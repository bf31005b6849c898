"""Steps and epochs: batches run on over an epoch's border, so the one does not divide the other."""

import math

from ml_collections import ConfigDict


def first_step(epoch: int, num_train: int, batch_size: int) -> int:
    """Return the first step, counted from 0, that begins in `epoch`, counted from 1, or later.

    An int32: beyond its range there are no steps.
    """
    return min(math.ceil((epoch - 1) * num_train / batch_size), 2**31 - 1)


def evaluation_due(config: ConfigDict, step: int, num_train: int) -> bool:
    """Return whether `step` completes another `config.eval_every_epochs` epochs."""
    period = num_train * config.eval_every_epochs
    seen = step * config.batch_size
    return step > 0 and seen // period > (seen - config.batch_size) // period


def total_steps(config: ConfigDict, num_train: int) -> int:
    """Return `config.num_steps`, or the steps that see `config.num_epochs` epochs of examples."""
    return config.num_steps or math.ceil(config.num_epochs * num_train / config.batch_size)
