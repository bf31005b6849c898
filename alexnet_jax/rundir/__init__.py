"""The run directory: checkpoints, metrics, whether a run may begin there or resumes."""

from alexnet_jax.rundir import checkpoint, quarantine, restoring, resume, weights_file
from alexnet_jax.rundir.checkpoint import Checkpoints
from alexnet_jax.rundir.filters import mosaic
from alexnet_jax.rundir.metrics import MetricsWriter
from alexnet_jax.rundir.progress import evaluating, say
from alexnet_jax.rundir.record import RunRecord
from alexnet_jax.rundir.restoring import Restored, restore
from alexnet_jax.rundir.resume import (
    LAST_GOOD,
    RESULT,
    check,
    finished_result,
    locked,
    rewind_or_stop,
    rewinds,
)
from alexnet_jax.rundir.tensorboard import scalars
from alexnet_jax.rundir.version import VERSION, device, versions

__all__ = [
    "LAST_GOOD",
    "RESULT",
    "VERSION",
    "Checkpoints",
    "MetricsWriter",
    "Restored",
    "RunRecord",
    "check",
    "checkpoint",
    "device",
    "evaluating",
    "finished_result",
    "locked",
    "mosaic",
    "quarantine",
    "restore",
    "restoring",
    "resume",
    "rewind_or_stop",
    "rewinds",
    "say",
    "scalars",
    "versions",
    "weights_file",
]
