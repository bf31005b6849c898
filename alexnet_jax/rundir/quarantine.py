"""Checkpoints that are moved out of the way, never deleted: damaged ones, those that led to NaN."""

import itertools
import pathlib
import sys

DAMAGED = "damaged_checkpoints"
DIVERGED = "diverged_checkpoints"


def move(checkpoint: pathlib.Path, folder: str) -> pathlib.Path:
    """Move `workdir`/checkpoints/N to `workdir`/`folder`, over none that is there; return that."""
    aside = checkpoint.parents[1] / folder
    aside.mkdir(exist_ok=True)
    step = checkpoint.name
    names = itertools.chain([step], (f"{step}.{i}" for i in itertools.count(1)))
    checkpoint.rename(next(path for name in names if not (path := aside / name).exists()))
    return aside


def move_damaged(checkpoint: pathlib.Path, reason: str) -> None:
    """Move a damaged checkpoint out of the way, and warn of it."""
    aside = move(checkpoint, DAMAGED)
    print(
        f"warning: {checkpoint} is damaged and now in {aside}"
        f" ({' '.join(reason.split())[:200]}); continuing from the checkpoint before it",
        file=sys.stderr,
    )
