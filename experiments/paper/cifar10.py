"""Krizhevsky's CIFAR-10 nets against their published errors.

    python experiments/paper/cifar10.py --net=80sec --data=CIFAR10_PNG --seeds 0 1 2

Trains configs/cifar10_NET.py with each seed in WORKDIR/NET-seedN; the same command resumes
what was stopped. Writes OUT.json (each run's errors, seconds, device, versions and command; mean
and standard deviation beside the published error), OUT.csv (errors epoch by epoch) and OUT.png
(curves); by default OUT is WORKDIR/NET, WORKDIR runs/cifar10. CIFAR10_PNG is a folder with
train/<class>/ and test/<class>/; without --data, tfds' cifar10. Further --config.FIELD=VALUE go to
run.py, and label the result.
"""

import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from experiments import command_line
from experiments.reports import metrics
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials

# The published error, and which of ours is measured in the same way: on the whole image, or as
# the mean of nine crops.
NETS = {
    "80sec": (0.26, "top1_error"),
    "18pct": (0.18, "top1_error"),
    "13pct": (0.13, "ten_crop_top1_error"),
    "11pct": (0.11, "ten_crop_top1_error"),
}


def summary(net: str, overrides: tuple[str, ...], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result file of `net`: the error over the `runs` that have ended, and all runs."""
    published, metric = NETS[net]
    ended = [run for run in runs if run["status"] == "finished"]
    return {
        "net": net,
        "overrides": command_line.without_places(overrides),
        "metric": metric,
        "published": published,
        "error": trial_records.spread(run[metric] for run in ended),
        "seconds": trial_records.spread(run["seconds"] for run in ended),
        "runs": runs,
    }


def plot(found: dict[str, Any], runs: list[list[dict[str, Any]]], out: pathlib.Path) -> None:
    """Draw the errors over epochs of `runs`, lines of metrics.jsonl, as OUT.png."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for lines in runs:
        epochs, errors = metrics.training_errors(lines)
        validation = [line for line in lines if line["split"] == "val"]
        axis.plot(epochs, 100 * errors, ":", color=COLOURS[1], linewidth=1)
        axis.plot(
            [line["epoch"] for line in validation],
            [100 * line["top1_error"] for line in validation],
            color=COLOURS[0],
            linewidth=1,
            marker="." if len(validation) < 30 else None,
        )
    published = 100 * found["published"]
    axis.axhline(published, color="0.4", linewidth=1, linestyle="--")
    axis.set(xlabel="epoch", ylabel="top-1 error (%)", ylim=(0, None), xlim=(0, None))
    axis.set_title(trial_records.label(found["net"], found["overrides"]), fontsize=9)
    crop = "" if found["metric"] == "top1_error" else ", centre crop"
    handles = [
        Line2D([], [], color=COLOURS[0], label=f"test{crop}, one line per seed"),
        Line2D([], [], color=COLOURS[1], linestyle=":", label="training, mean over an epoch"),
        Line2D([], [], color="0.4", linestyle="--", label=f"published, {published:.0f} %"),
    ]
    if crop:
        for run in found["runs"]:
            if run["status"] == "finished":
                error = 100 * run[found["metric"]]
                axis.plot(run["epoch"], error, "D", color=COLOURS[2], clip_on=False)
        label = "test, mean over nine crops, as published"
        handles.append(Line2D([], [], color=COLOURS[2], marker="D", linestyle="", label=label))
    axis.legend(handles=handles, frameon=False)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--net", required=True, choices=list(NETS), help="which")
    given, overrides = parser.given()
    workdir = given.workdir or pathlib.Path("runs/cifar10")
    out = given.out or workdir / given.net
    recipe = ROOT / f"configs/cifar10_{given.net}.py"
    all_trials = [trials.Trial(given.net, recipe, overrides, {}, seed) for seed in given.seeds]

    found: dict[str, Any] = {}

    def write() -> None:
        runs = trial_records.records(all_trials, workdir)
        found.update(summary(given.net, overrides, runs))
        found["pending"] = trial_records.pending(all_trials, workdir)
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json(found, scratch)
            trial_records.write_log(all_trials, workdir, scratch)
            plot(found, [metrics.lines(t.directory(workdir)) for t in all_trials], scratch)

    code = trials.run(all_trials, workdir, train_which=lambda _: not given.report, write=write)
    error = trial_records.written(found["error"], scale=100)
    print(
        f"{trial_records.label(given.net, overrides)}: {error} % (n {found['error']['n']}),"
        f" published {100 * found['published']:.0f} %"
    )
    return code


if __name__ == "__main__":
    command_line.main(main)
