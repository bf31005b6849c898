"""The run directories that a command line names, and how their runs are told apart."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from alexnet_jax.errors import InputError
from alexnet_jax.rundir import RESULT


def named(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Return the run directories `paths` by names that differ, each once, in their order.

    A path that is no run directory but holds some, as that of an experiment, stands for these; one
    that holds none stays, for who reads it to refuse. Raises InputError for a file.
    """
    given = (path.resolve() for path in paths)
    workdirs = list(dict.fromkeys(run for path in given for run in _runs(path)))
    return dict(zip(_names(workdirs), workdirs, strict=True))


def _runs(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        raise InputError(f"{path} is a file; give directories of runs")
    if (path / "config.json").exists():
        return [path]
    return sorted(file.parent for file in path.glob("*/config.json")) or [path]


def _names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Return as much of the end of each path as tells it from the others."""
    for length in range(1, max(len(path.parts) for path in workdirs) + 1):
        ends = ["/".join(path.parts[-length:]) for path in workdirs]
        if len(set(ends)) == len(ends):
            break
    return ends


def result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Return what `workdir`/result.json holds, None if the run has not ended or it is damaged."""
    try:
        found = json.loads((workdir / "result.json").read_text())
        numbers = [found[name] for name in RESULT if name != "best_step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if all(type(n) in (int, float) for n in numbers) else None
