"""The pictures of a sweep: the error over each field, and over the trials in their order."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.reports.curves import COLOURS

Row = Mapping[str, Any]  # of sweep_report.rows
_BLUE, _RED, _GREEN = COLOURS[:3]
_MARKS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "color": _BLUE, "s": 28},
    "pruned": {"marker": "x", "color": _RED, "s": 28, "linewidths": 1.2},
    "unfinished": {"marker": "o", "facecolors": "none", "edgecolors": "0.5", "s": 28},
    "failed": {"marker": "|", "color": "0.3", "s": 60},
    "best": {"marker": "*", "color": _GREEN, "s": 130, "zorder": 3},
}
_NAMES = {
    "pruned": "pruned (lowest until then)",
    "unfinished": "unfinished (lowest so far)",
    "failed": "failed (upper edge)",
}


def of_fields(
    found: Sequence[Row],
    first: Row | None,
    space: Mapping[str, BaseDistribution],
    path: pathlib.Path,
) -> None:
    """Draw the errors of the rows `found` over each field of `space`; `first` is the best row."""
    columns = min(3, len(space))
    lines = math.ceil(len(space) / columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(max(6.4, 3.8 * columns), 0.8 + 3.2 * lines),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (name, each) in zip(axes.flat, space.items(), strict=False):
        drawn = {row["number"]: row["values"][name] for row in found if name in row["values"]}
        if isinstance(each, CategoricalDistribution):
            choices = [str(choice) for choice in each.choices]
            _scatter(axis, found, first, {n: choices.index(text) for n, text in drawn.items()})
            long = sum(len(_clipped(choice)) + 2 for choice in choices) > 40
            axis.set_xticks(
                range(len(choices)),
                [_clipped(choice) for choice in choices],
                rotation=30 if long else 0,
                ha="right" if long else "center",
            )
            axis.set_xlim(-0.5, len(choices) - 0.5)
        else:
            assert isinstance(each, FloatDistribution | IntDistribution)
            _scatter(axis, found, first, {n: float(text) for n, text in drawn.items()})
            _scale(axis, each)
        axis.set_xlabel(name)
        axis.margins(y=0.09)  # failed trials are above all others
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation top-1 error (%)")
    for axis in list(axes.flat)[len(space) :]:
        axis.set_visible(False)
    _legend(figure, 5 if columns == 3 else 3)
    _save(figure, path)


def of_trials(found: Sequence[Row], first: Row | None, path: pathlib.Path) -> None:
    """Draw the errors of the rows `found` in the order they were begun, and the best so far."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    _scatter(axis, found, first, {row["number"]: row["number"] for row in found})
    lowest, x, y = math.inf, [], []
    for row in found:
        if row["state"] == "complete":
            lowest = min(lowest, 100 * row["top1_error"])
        if lowest < math.inf:
            x.append(row["number"])
            y.append(lowest)
    if x:
        axis.step(x, y, where="post", color=_GREEN, linewidth=1.2, label="best so far", zorder=1.5)
    axis.set(xlabel="trial, in the order begun", ylabel="validation top-1 error (%)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(y=0.09)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    _legend(figure, 3)
    _save(figure, path)


def _scatter(
    axis: Axes, found: Sequence[Row], first: Row | None, places: Mapping[int, float]
) -> None:
    """Draw the error of each trial at its place; those that failed, along the upper edge."""
    rows_of = {state: [r for r in found if r["state"] == state] for state in _MARKS}
    rows_of["best"] = [first] if first else []
    for state, marks in _MARKS.items():
        drawn = [row for row in rows_of[state] if row["number"] in places]
        where: dict[str, Any] = {}
        if state == "failed":
            y, where = [0.97] * len(drawn), {"transform": axis.get_xaxis_transform()}
        else:
            drawn = [row for row in drawn if row["top1_error"] is not None]
            y = [100 * row["top1_error"] for row in drawn]
        if drawn:
            x = [places[row["number"]] for row in drawn]
            axis.scatter(x, y, label=_NAMES.get(state, state), **marks, **where)


def _legend(figure: Figure, columns: int) -> None:
    labelled: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, frameon=False
    )


def _scale(axis: Axes, each: FloatDistribution | IntDistribution) -> None:
    """Let the axis show the whole range that is drawn from."""
    margin = 0.03 * (each.high - each.low)
    if not each.log:
        axis.set_xlim(each.low - margin, each.high + margin)
        if isinstance(each, IntDistribution):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    ratio = each.high / each.low
    axis.set_xscale("log")
    axis.set_xlim(each.low / ratio**0.03, each.high * ratio**0.03)
    between = (1, 2, 3, 5, 7) if ratio < 10 else (1, 3) if ratio < 1000 else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=between))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _clipped(text: str) -> str:
    return text if len(text) <= 24 else text[:22] + " ..."


def _save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
