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
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax import config as config_lib
from alexnet_jax.version import versions
from experiments.curves import COLOURS

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
        found.append(
            {
                "number": trial.number,
                "state": STATES[trial.state],
                "values": {n: _as_text(v) for n, v in trial.params.items()},
                "top1_error": error,
                "epochs": _epochs(directory(workdir, trial.number)),
                "failure": trial.user_attrs.get("failure"),
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
    shown += [f"trial {r['number']} failed: {r['failure']}" for r in trials if r["failure"]]
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
    "failed": {"marker": "|", "color": "0.4", "s": 60},
}


def _scatter(axis: Axes, found: Sequence[Mapping[str, Any]], places: Mapping[int, float]) -> None:
    """Draw the error of each trial at its place; those that failed, along the upper edge."""
    for state, marks in _MARKS.items():
        of_state = [r for r in found if r["state"] == state and r["number"] in places]
        if state != "failed":
            of_state = [row for row in of_state if row["top1_error"] is not None]
        if not of_state:
            continue
        x = [places[row["number"]] for row in of_state]
        if state == "failed":
            axis.scatter(
                x, [1] * len(x), transform=axis.get_xaxis_transform(), clip_on=False, **marks
            )
        else:
            axis.scatter(x, [100 * row["top1_error"] for row in of_state], **marks)
    first = best(found)
    if first is not None:
        place = places[first["number"]]
        axis.scatter(place, 100 * first["top1_error"], marker="*", s=130, color=_GREEN, zorder=3)


def _legend(figure: Any, found: Sequence[Mapping[str, Any]]) -> None:
    names = {
        "complete": "complete",
        "pruned": "pruned (best so far)",
        "unfinished": "unfinished (best so far)",
        "failed": "failed (at the upper edge)",
    }
    axis = figure.axes[0]
    handles = []
    for state, marks in _MARKS.items():
        if any(row["state"] == state for row in found):
            handles.append(axis.scatter([], [], label=names[state], **marks))
    if best(found) is not None:
        handles.append(axis.scatter([], [], marker="*", s=130, color=_GREEN, label="best"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


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
        figsize=(max(6.4, 3.8 * columns), 0.5 + 3.2 * lines),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (name, each) in zip(axes.flat, space.items(), strict=False):
        drawn = {row["number"]: row["values"][name] for row in found if name in row["values"]}
        if isinstance(each, CategoricalDistribution):
            choices = [str(choice) for choice in each.choices]
            _scatter(axis, found, {n: choices.index(text) for n, text in drawn.items()})
            steep = max(map(len, choices)) * len(choices) > 40
            axis.set_xticks(
                range(len(choices)),
                [_clipped(choice) for choice in choices],
                rotation=30 if steep else 0,
                ha="right" if steep else "center",
            )
            axis.set_xlim(-0.5, len(choices) - 0.5)
        else:
            if isinstance(each, FloatDistribution) and each.log:
                axis.set_xscale("log")
            _scatter(axis, found, {n: float(text) for n, text in drawn.items()})
        axis.set_xlabel(name)
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation top-1 error (%)")
    for axis in list(axes.flat)[len(space) :]:
        axis.set_visible(False)
    _legend(figure, found)
    _save(figure, path)


def _clipped(text: str) -> str:
    return text if len(text) <= 24 else text[:22] + " ..."


def _plot_trials(found: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    figure, axis = plt.subplots(figsize=(7.2, 4), layout="constrained")
    _scatter(axis, found, {row["number"]: row["number"] for row in found})
    lowest, x, y = math.inf, [], []
    for row in found:
        if row["state"] == "complete":
            lowest = min(lowest, 100 * row["top1_error"])
        if lowest < math.inf:
            x.append(row["number"])
            y.append(lowest)
    axis.step(x, y, where="post", color=_GREEN, linewidth=1.2, label="best so far", zorder=0)
    if x:
        axis.annotate(
            "best so far", (x[-1], y[-1]), (0, -4), textcoords="offset points", va="top",
            ha="right", color=_GREEN,
        )  # fmt: skip
    axis.set(xlabel="trial, in the order begun", ylabel="validation top-1 error (%)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    _legend(figure, found)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    scratch = path.with_suffix(".tmp")
    figure.savefig(scratch, format="png", dpi=110)
    plt.close(figure)
    scratch.replace(path)
