"""What each part of the network is worth: the paper's ablations as differences of one config.

    python experiments/paper/ablations.py --config=configs/alexnet.py --data=IMAGENETTE \
      --seeds 0 1 2 --config.model.num_classes=10 --out=experiments/results/ablations

Trains the recipe as it is (`full`) and without one part at a time, with each seed, in
WORKDIR/NAME-seedN; the same command goes on with what was stopped, and --only takes some at a time.
What does not apply to the recipe is named and left out. Writes OUT.json (all runs, mean and
standard deviation), OUT.md (the table, also printed), OUT.csv (errors epoch by epoch) and OUT.png;
by default OUT is WORKDIR/ablations, WORKDIR runs/ablations/RECIPE. Further --config.FIELD=VALUE go
to run.py.
"""

import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt

from alexnet_jax.errors import InputError
from experiments import command_line
from experiments.paper.ablated_configs import Differences, ablations
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials

METRICS = ("ten_crop_top1_error", "ten_crop_top5_error")
# What the paper says a part is worth: points of top-1 and top-5 error, or words.
PAPER = {
    "no_lrn": "1.4 / 1.2",
    "no_overlap": "0.4 / 0.3",
    "half_width": "1.7 / 1.2 (against two columns)",
    "no_colour": "more than 1 top-1",
    "no_crops_flips": "overfits badly",
    "no_dropout": "overfits badly",
    "tanh": "slower (figure 1)",
}
PAPER_LAYER = "about 2 top-1"


def summary(found: dict[str, Differences], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return of each ablation its differences, errors, and points more than `full`'s mean."""
    table: dict[str, Any] = {}
    for name, differences in found.items():
        ended = [run for run in runs if run["name"] == name and run["status"] == "finished"]
        row: dict[str, Any] = {"differences": differences}
        row["paper"] = PAPER.get(name, PAPER_LAYER if name.startswith("without_") else "")
        for metric in trial_records.ERRORS:
            of_metric = trial_records.spread(run[metric] for run in ended)
            full = table["full"][metric]["mean"] if table else of_metric["mean"]
            known = of_metric["mean"] is not None and full is not None
            points = round(100 * (of_metric["mean"] - full), 2) if known else None
            row[metric] = of_metric | {"points_more_than_full": points}
        table[name] = row
    return table


def markdown(table: dict[str, Any]) -> str:
    """Return the table as text: errors in percent, differences in points; then what is missing."""
    lines = [
        "| | n | top-1 error, % | points more | top-5 error, % | points more | in the paper |",
        "|---|---|---|---|---|---|---|",
    ]
    ended = {name: row for name, row in table.items() if row[METRICS[0]]["n"]}
    for name, row in ended.items():
        cells = [name, str(row[METRICS[0]]["n"])]
        for metric in METRICS:
            points = row[metric]["points_more_than_full"]
            shown = "" if name == "full" or points is None else f"{points:+.2f}"
            cells += [trial_records.written(row[metric], scale=100), shown]
        lines.append("| " + " | ".join([*cells, row["paper"]]) + " |")
    if missing := [name for name in table if name not in ended]:
        lines += ["", f"No run has ended of: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def plot(table: dict[str, Any], runs: list[dict[str, Any]], title: str, out: pathlib.Path) -> None:
    """Draw the top-1 error of every run, and each ablation's mean, as OUT.png."""
    rows = [name for name, row in table.items() if row[METRICS[0]]["n"]]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(7, 1.6 + 0.32 * len(rows)), layout="constrained")
    ended = [run for run in runs if run["status"] == "finished"]
    axis.plot(
        [100 * run[METRICS[0]] for run in ended],
        [rows.index(run["name"]) for run in ended],
        "o",
        color=COLOURS[0],
        alpha=0.5,
        markersize=5,
        label="a seed",
    )
    means = [100 * table[name][METRICS[0]]["mean"] for name in rows]
    axis.plot(means, range(len(rows)), "|", color=COLOURS[1], markersize=16, label="mean")
    if "full" in rows:
        axis.axvline(means[0], color="0.6", linewidth=0.8, label="mean of full")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel="top-1 error, mean over the test's crops (%)", ylim=(len(rows) - 0.5, -0.5))
    axis.set_title(title, fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--config", type=command_line.path, default=ROOT / "configs/alexnet.py")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these; report all")
    given, overrides = parser.given()
    config = command_line.read_config([f"--config={given.config}", *overrides])
    recipe = given.config.resolve()
    workdir = given.workdir or pathlib.Path("runs/ablations") / recipe.stem
    out = given.out or workdir / "ablations"
    found, left_out = ablations(config)
    for name in given.only or []:
        if name not in found:
            reason = f" does not apply: {left_out[name]}" if name in left_out else " is none"
            raise InputError(f"--only={name}{reason}; of this recipe there are {', '.join(found)}")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    all_trials = [
        trials.Trial(name, recipe, overrides, differences, seed)
        for name, differences in found.items()
        for seed in given.seeds
    ]

    def write() -> None:
        runs = trial_records.records(all_trials, workdir)
        table = summary(found, runs)
        labels = command_line.without_places(overrides)
        about = {"recipe": recipe.name, "overrides": labels, "left_out": left_out}
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json(about | {"table": table, "runs": runs}, scratch)
            trial_records.write_log(all_trials, workdir, scratch)
            trial_records.extended(scratch, ".md").write_text(markdown(table))
            plot(table, runs, trial_records.label(recipe.stem, overrides), scratch)

    code = trials.run(
        all_trials,
        workdir,
        train_which=lambda t: not given.report and t.name in (given.only or found),
        write=write,
    )
    print(trial_records.extended(out, ".md").read_text(), end="")
    return code


if __name__ == "__main__":
    command_line.main(main)
