"""Variants of a network beside the one they differ from: a table, and a plot of the differences."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.reports.curves import COLOURS
from experiments.runs import trial_records

METRICS = ("ten_crop_top1_error", "ten_crop_top5_error")
# A difference shows if it is this many standard errors. Of a dozen differences that are nothing but
# chance, one is more than two of them.
SHOWS = 3


class Variant(NamedTuple):
    """What a network is compared with, and what the paper says the difference is worth."""

    against: str
    paper: str = ""


def summary(variants: Mapping[str, Variant], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return errors of each of `variants`, and their differences in points, over finished `runs`.

    `points_more` is the difference of the means, `standard_error` that of this difference, by the
    variances of both over their seeds; seeds are not paired. It is None of fewer than two seeds.
    """
    ended = [run for run in runs if run["status"] == "finished"]
    table: dict[str, Any] = {}
    for name, variant in variants.items():
        table[name] = {"against": variant.against, "paper": variant.paper}
        for metric in trial_records.ERRORS:
            of_metric = trial_records.spread(r[metric] for r in ended if r["name"] == name)
            other = trial_records.spread(r[metric] for r in ended if r["name"] == variant.against)
            table[name][metric] = of_metric | _difference(of_metric, other)
    return table


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float | None]:
    if not one["n"] or not other["n"]:
        return {"points_more": None, "standard_error": None}
    error = None
    if one["n"] > 1 and other["n"] > 1:
        error = 100 * math.sqrt(one["std"] ** 2 / one["n"] + other["std"] ** 2 / other["n"])
    return {"points_more": 100 * (one["mean"] - other["mean"]), "standard_error": error}


def write(
    table: dict[str, Any], runs: Sequence[dict[str, Any]], title: str, out: pathlib.Path
) -> None:
    """Write OUT.md and OUT.png of a `summary` of `runs`."""
    trial_records.extended(out, ".md").write_text(markdown(table, runs))
    plot(table, runs, title, out)


def markdown(table: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """Return the table as text: errors in percent, differences in points; then what is missing."""
    lines = [
        "| | n | top-1 error, % | points more | top-5 error, % | points more | against | shows"
        " | in the paper |",
        "|" + "---|" * 9,
    ]
    ended = {name: row for name, row in table.items() if row[METRICS[0]]["n"]}
    for name, row in ended.items():
        cells = [name, str(row[METRICS[0]]["n"])]
        for metric in METRICS:
            cells += [trial_records.written(row[metric], scale=100), _points(row, name, metric)]
        against = "" if row["against"] == name else row["against"]
        cells += [against, _shows(row) if against else "", row["paper"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Points are differences of means, ± their standard error over the seeds. A difference shows"
        f" if its top-1 points are {SHOWS} standard errors or more.",
    ]
    for run in runs:
        if run["status"] != "finished":
            which = f"{run['name']}, seed {run['seed']}"
            why = f": {run['failure']}" if run.get("failure") else ""
            how = f"{run['status']} at epoch {run['epoch']:.1f}{why}"
            lines += ["", f"Not in the means: {which}, {how}"]
    if missing := [name for name in table if name not in ended]:
        lines += ["", f"No run has ended of: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _points(row: dict[str, Any], name: str, metric: str) -> str:
    points, error = row[metric]["points_more"], row[metric]["standard_error"]
    if row["against"] == name or points is None:
        return ""
    return f"{points:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def _shows(row: dict[str, Any]) -> str:
    points, error = (row[METRICS[0]][name] for name in ("points_more", "standard_error"))
    if error is None:
        return "not known"
    return "yes" if abs(points) >= SHOWS * error else "no"


def plot(
    table: dict[str, Any], runs: Sequence[dict[str, Any]], title: str, out: pathlib.Path
) -> None:
    """Draw the differences in top-1 error, of each seed and of the means, as OUT.png."""
    rows = [name for name, row in table.items() if row[METRICS[0]]["points_more"] is not None]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(7, 1.8 + 0.32 * len(rows)), layout="constrained")
    means = {name: 100 * table[name][METRICS[0]]["mean"] for name in rows}
    seeds = [
        (100 * run[METRICS[0]] - means[table[run["name"]]["against"]], rows.index(run["name"]))
        for run in runs
        if run["status"] == "finished" and run["name"] in rows
    ]
    axis.plot(*zip(*seeds, strict=True), "o", color=COLOURS[0], alpha=0.5, markersize=5,
              label="one seed")  # fmt: skip
    differences = [(row, table[name][METRICS[0]]) for row, name in enumerate(rows)]
    differences = [(i, of) for i, of in differences if table[rows[i]]["against"] != rows[i]]
    errors = [SHOWS * (of["standard_error"] or 0) for _, of in differences]
    axis.errorbar([of["points_more"] for _, of in differences], [i for i, _ in differences],
                  xerr=errors, fmt="|", color=COLOURS[1], markersize=14, capsize=3,
                  label=f"mean ± {SHOWS} standard errors")  # fmt: skip
    axis.axvline(0, color="0.6", linewidth=0.8)
    names = {name: table[name]["against"] for name in rows}
    usual = next(iter(names.values()))
    labels = [n if names[n] in (n, usual) else f"{n}, against {names[n]}" for n in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set(xlabel=f"points of top-1 error more than {usual}, mean over the test's crops",
             ylim=(len(rows) - 0.5, -0.5))  # fmt: skip
    figure.suptitle(title, fontsize=9)  # wider than the axis, whose labels may be long
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)
