"""What differs between two finished runs of one command, other than times."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from alexnet_jax.rundir import Checkpoints, restoring, scalars

# Times, and on what machine and with what code each was run.
_NOT_COMPARED = ("seconds", "images_per_second", "device", "versions", "code")


def differences(
    straight: pathlib.Path, other: pathlib.Path, stops: Iterable[int] = ()
) -> list[str]:
    """Return what differs to the bit between an undisturbed run and another.

    Compared are every line of metrics.jsonl, every scalar in TensorBoard's files, once, the result,
    which checkpoints are kept, and the arrays and the JSON of those that both have kept. What a
    stop has saved counts among the two latest, so that `other` may keep checkpoints of `stops`.
    """
    found = [
        part.__name__.strip("_")
        for part in (_metrics, _tensorboard, _result)
        if part(straight) != part(other)
    ]
    kept, expected = saved_steps(other), _kept_with(straight, stops)
    if kept != expected:
        found.append(f"checkpoints: {sorted(kept)} instead of {sorted(expected)}")
    for step in sorted(kept & saved_steps(straight)):
        (_, state, record), (_, other_state, other_record) = (
            restoring.load(workdir, step) for workdir in (straight, other)
        )
        pairs = zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other_state), strict=True)
        found += [
            f"checkpoint {step}: state{jax.tree_util.keystr(path)}"
            for (path, a), b in pairs
            if np.asarray(a).tobytes() != np.asarray(b).tobytes()
        ]
        if _compared(record.to_json()) != _compared(other_record.to_json()):
            found.append(f"checkpoint {step}: record")
    return found


def saved_steps(workdir: pathlib.Path) -> set[int]:
    """Return the steps of the checkpoints that a run directory holds."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return {int(name) for name in names if name.isdecimal()}


def _kept_with(straight: pathlib.Path, stops: Iterable[int]) -> set[int]:
    """Return what an undisturbed run would have kept if it had saved at `stops` too."""
    with Checkpoints(straight, read_only=True) as checkpoints:
        best = checkpoints.best()
    assert best is not None
    return {best, *sorted(saved_steps(straight) | set(stops))[-2:]}


def _compared(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _compared(v) for name, v in tree.items() if name not in _NOT_COMPARED}
    return [_compared(value) for value in tree] if isinstance(tree, list) else tree


def _metrics(workdir: pathlib.Path) -> Any:
    return _compared(list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())))


def _tensorboard(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
    found = scalars(workdir / "tensorboard")
    return sorted(scalar for scalar in found if "images_per_second" not in scalar[1])


def _result(workdir: pathlib.Path) -> Any:
    return _compared(json.loads((workdir / "result.json").read_text()))
