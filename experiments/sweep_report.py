"""What a sweep has found: a table, the best command line, results.json and two pictures."""

import datetime
import json
import math
import pathlib
import shlex
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
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax import config as config_lib
from alexnet_jax.version import versions
from experiments.curves import COLOURS

FAILURE = "failure"  # what a failed trial has: why
OBJECTIVE = "the lowest validation top-1 error among the `val` lines of metrics.jsonl"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}
_BLUE, _RED, _GREEN = COLOURS[:3]


def directory(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Return the run directory of trial `number`."""
    return workdir / "trials" / f"{number:04}"


def rows(workdir: pathlib.Path, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return number, state, values, top1_error, epochs of each trial; None for what is not yet."""
    found = []
    for trial in trials:
        errors = list(trial.intermediate_values.values())
        error = trial.value if trial.state == TrialState.COMPLETE else min(errors, default=None)
        ended = trial.state.is_finished()
        failure = trial.user_attrs.get(FAILURE) if ended else None
        found.append(
            {
                "number": trial.number,
                "state": "failed" if failure else STATES[trial.state],
                "values": {n: _as_text(v) for n, v in trial.params.items()},
                "top1_error": error,
                "epochs": _epochs(directory(workdir, trial.number)),
                "failure": failure,
            }
        )
    return found


def _as_text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _epochs(run: pathlib.Path) -> float | None:
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 10_000))
            lines = file.read().splitlines()
        return round(json.loads(lines[-1])["epoch"], 3)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def best(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the complete trial with the lowest error, the first of equals."""
    complete = [row for row in trials if row["state"] == "complete"]
    return min(complete, key=lambda row: row["top1_error"], default=None)


def command(recipe: str, overrides: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Return the arguments of run.py for a run with `overrides` and `values`."""
    both = {**overrides, **values}
    return [f"--config={recipe}", *(f"--config.{name}={text}" for name, text in both.items())]


def table(trials: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Return the table that is shown, a line a trial, and below it why trials failed."""
    heads = ["trial", "state", *fields, "top-1 error", "epochs"]
    lines = [heads]
    for row in trials:
        error, epochs = row["top1_error"], row["epochs"]
        lines.append(
            [
                str(row["number"]),
                row["state"],
                *(_short(row["values"].get(name, "")) for name in fields),
                "" if error is None else f"{error:.2%}",
                "" if epochs is None else f"{epochs:.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    shown.insert(1, "-" * len(shown[0]))
    for row in trials:
        if row["failure"]:
            shown.append(f"trial {row['number']} failed: {row['failure'].split('; ')[0]}")
    return "\n".join(line.rstrip() for line in shown)


def _short(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number.is_integer() else f"{number:.4g}"


def write(
    workdir: pathlib.Path,
    record: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    trials: Sequence[FrozenTrial],
) -> str:
    """Write results.json, fields.png and trials.png into `workdir` and return what is to be shown.

    `record` is what sweep.json holds.
    """
    found = rows(workdir, trials)
    first = best(found)
    shown = [table(found, list(space))]
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "objective": OBJECTIVE,
        **{name: value for name, value in record.items() if name != "storage"},
        "trials": found,
        "best": None,
    }
    if first is not None:
        arguments = command(record["recipe"], record["overrides"], first["values"])
        line = shlex.join(["python", "run.py", *arguments, f"--workdir={workdir / 'best'}"])
        results["best"] = {"number": first["number"], "command": line}
        shown += [
            "",
            f"best: trial {first['number']}, {first['top1_error']:.2%} ({OBJECTIVE}); its run is"
            f" {directory(workdir, first['number'])}. To train it again:",
            line,
        ]
    config_lib.write_json(results, workdir / "results.json")
    if any(row["top1_error"] is not None for row in found):
        _plot_fields(found, space, workdir / "fields.png")
        _plot_trials(found, workdir / "trials.png")
        shown += ["", f"{workdir}: results.json, fields.png, trials.png"]
    return "\n".join(shown)


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


def _scatter(axis: Axes, found: Sequence[Mapping[str, Any]], places: Mapping[int, float]) -> None:
    """Draw the error of each trial at its place; those that failed, along the upper edge."""
    rows_of = {state: [r for r in found if r["state"] == state] for state in _MARKS}
    first = best(found)
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


def _plot_fields(
    found: Sequence[Mapping[str, Any]],
    space: Mapping[str, BaseDistribution],
    path: pathlib.Path,
) -> None:
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
            _scatter(axis, found, {n: choices.index(text) for n, text in drawn.items()})
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
            _scatter(axis, found, {n: float(text) for n, text in drawn.items()})
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


def _plot_trials(found: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    _scatter(axis, found, {row["number"]: row["number"] for row in found})
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


def _save(figure: Figure, path: pathlib.Path) -> None:
    scratch = path.with_suffix(".tmp")
    figure.savefig(scratch, format="png", dpi=110)
    plt.close(figure)
    scratch.replace(path)
