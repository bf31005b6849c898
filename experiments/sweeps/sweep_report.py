"""The report of a sweep: a table, the best command line, results.json and plots."""

import datetime
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax import config as config_lib
from alexnet_jax.host import whole_files
from alexnet_jax.rundir import versions
from experiments.reports import metrics
from experiments.sweeps import sweep_plots

FAILURE = "failure"  # attribute of a failed trial: the reason
OBJECTIVE = "the lowest validation top-1 error among the `val` lines of metrics.jsonl"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


def directory(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Return the run directory of trial `number`."""
    return workdir / "trials" / f"{number:04}"


def rows(workdir: pathlib.Path, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return number, state, values, top1_error, epochs of each trial; None for the unknown."""
    found = []
    for trial in trials:
        errors = list(trial.intermediate_values.values())
        complete, ended = trial.state == TrialState.COMPLETE, trial.state.is_finished()
        error = trial.value if complete else min(errors, default=None)
        # A worker that was killed after it set this attribute has left the trial to another.
        failure = trial.user_attrs.get(FAILURE) if ended and not complete else None
        epochs = metrics.epochs(directory(workdir, trial.number))
        found.append(
            {
                "number": trial.number,
                "state": "failed" if failure else STATES[trial.state],
                "values": {n: _as_text(v) for n, v in trial.params.items()},
                "top1_error": error,
                "epochs": None if epochs is None else round(epochs, 3),
                "failure": failure,
            }
        )
    return found


def _as_text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def best(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the complete trial with the lowest error, the first of equals."""
    complete = [row for row in trials if row["state"] == "complete"]
    return min(complete, key=lambda row: row["top1_error"], default=None)


def command(recipe: str, overrides: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Return the arguments of run.py for a run with `overrides` and `values`."""
    both = {**overrides, **values}
    return [f"--config={recipe}", *(f"--config.{name}={text}" for name, text in both.items())]


def table(trials: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Return the table to print, one line per trial, and below it why trials failed."""
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


def write(workdir: pathlib.Path, record: Mapping[str, Any], study: optuna.Study) -> str:
    """Write results.json, fields.png and trials.png into `workdir` and return the text to print.

    `record` is the content of sweep.json. Without a complete trial there are no plots.
    """
    found = rows(workdir, study.get_trials())
    first = best(found)
    shown = [table(found, list(record["space"]))]
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "objective": OBJECTIVE,
        **{name: value for name, value in record.items() if name != "storage"},
        "trials": found,
        "best": None,
    }
    files = ["results.json"]
    with whole_files(workdir) as scratch:
        if first is not None:
            arguments = command(record["recipe"], record["overrides"], first["values"])
            line = shlex.join(["python", "run.py", *arguments, f"--workdir={workdir / 'best'}"])
            results["best"] = {"number": first["number"], "command": line}
            shown += [
                "",
                f"best: trial {first['number']}, {first['top1_error']:.2%} ({OBJECTIVE}); its run"
                f" is in {directory(workdir, first['number'])}. To train it again:",
                line,
            ]
            sweep_plots.plot(study, scratch)
            files += ["fields.png", "trials.png"]
        config_lib.write_json(results, scratch / "results.json")
    return "\n".join([*shown, "", f"{workdir}: {', '.join(files)}"])
