"""What a run's metrics.jsonl says, whole or torn, also while it is being written."""

import array
import contextlib
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "top1_error",
    "top5_error",
    "images_per_second",
    "learning_rate",
)
NEEDED = {"epoch", "top1_error"}  # without which a line does not belong to a run
Columns = dict[str, dict[str, np.ndarray]]  # of `read`: of each split the columns by their names
TAIL = 1 << 16  # bytes at the end of a file, many lines


def read(workdir: pathlib.Path) -> tuple[Columns, int]:
    """Return the columns of `workdir`/metrics.jsonl, and how many lines are left out as torn.

    For 'train' and 'val' each of COLUMNS is float64 (lines,); of a file that is not there, (0,).
    """
    numbers = {"train": array.array("d"), "val": array.array("d")}
    torn, wanted = 0, set(COLUMNS)
    with _opened(workdir) as file:
        for line in _parsed(file):  # of ImageNet there are a million
            if line and line.keys() >= wanted:
                numbers[line["split"]].extend([line[name] for name in COLUMNS])
            else:
                torn += 1
    columns = {split: np.array(n).reshape(-1, len(COLUMNS)).T for split, n in numbers.items()}
    return {split: dict(zip(COLUMNS, c, strict=True)) for split, c in columns.items()}, torn


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the whole lines of `workdir`/metrics.jsonl as they are, [] where it is not there.

    Each has a `split`, 'train' or 'val', and finite numbers, among them those NEEDED.
    """
    with _opened(workdir) as file:
        return [line for line in _parsed(file) if line]


def epochs(workdir: pathlib.Path) -> float | None:
    """Return the epochs that the run has done by its last whole line, None if there is none.

    Only the end of the file is read.
    """
    with _opened(workdir) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        last = [float(line["epoch"]) for line in _parsed(file) if line]
    return last[-1] if last else None


def training_errors(lines: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and errors after each training step logged in `lines`, the rows of a run.

    An error is the mean top-1 error of the batches, each before its update, of the epoch that ends
    there; in the first epoch of what there is of it.
    """
    of_train = [(line["epoch"], line["top1_error"]) for line in lines if line["split"] == "train"]
    epochs, errors = np.array(of_train, np.float64).reshape(-1, 2).T
    sums = np.concatenate([[0.0], np.cumsum(errors)])
    begins = np.searchsorted(epochs, epochs - 1 + 1e-9, "right")
    ends = np.arange(1, len(epochs) + 1)
    return epochs, (sums[ends] - sums[begins]) / (ends - begins)


def _opened(workdir: pathlib.Path) -> BinaryIO:
    with contextlib.suppress(FileNotFoundError):
        return (workdir / "metrics.jsonl").open("rb")
    return io.BytesIO()


def _parsed(file: BinaryIO) -> Iterator[dict[str, Any] | None]:
    """Yield each line of `file`, None for one that is torn or does not belong to a run."""
    for text in file:
        try:
            line = json.loads(text)
            numbers = [value for name, value in line.items() if name != "split"]
            whole = line["split"] in ("train", "val") and line.keys() >= NEEDED
            whole = whole and {int, float}.issuperset(map(type, numbers))
            whole = whole and all(map(math.isfinite, numbers))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            whole = False
        yield line if whole else None
