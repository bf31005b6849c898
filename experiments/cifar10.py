"""Krizhevsky's CIFAR-10 nets against their published errors.

    python experiments/cifar10.py --net=80sec --data=CIFAR10_PNG --seeds 0 1 2

Trains configs/cifar10_NET.py with each seed in WORKDIR/NET-seedN; the same command goes on with what
was stopped. Writes OUT.json (each run's errors, seconds, device, versions and command; mean and
standard deviation beside the published error) and OUT.png (curves). CIFAR10_PNG is a folder with
train/<class>/ and test/<class>/; without --data, tfds' cifar10. Further --config.FIELD=VALUE go to
run.py, and label the result.
"""

import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments import curves, trials

# The published error, and which of ours is measured in the same way: on the whole picture, or as
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
        "overrides": trials.without_places(overrides),
        "metric": metric,
        "published": published,
        "error": trials.spread(run[metric] for run in ended),
        "seconds": trials.spread(run["seconds"] for run in ended),
        "runs": runs,
    }


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = trials.Parser(__doc__)
    parser.add_argument("--net", required=True, choices=list(NETS), help="which")
    given, overrides = parser.given()
    workdir = given.workdir or pathlib.Path("runs/cifar10")
    out = given.out or workdir / given.net
    recipe = ROOT / f"configs/cifar10_{given.net}.py"
    all_trials = [trials.Trial(given.net, recipe, overrides, {}, seed) for seed in given.seeds]

    def write(runs: list[dict[str, Any]]) -> None:
        found = summary(given.net, overrides, runs)
        trials.write_json(found, out)
        drawn = {
            f"seed {trial.seed}": curves.curve(trial.directory(workdir))
            for trial in all_trials
            if trials.read_lines(trial.directory(workdir))
        }
        if drawn:
            curves.plot(drawn, out.with_suffix(".png"))
        label = f" with {' '.join(found['overrides'])}" if found["overrides"] else ""
        print(
            f"{given.net}{label}: {trials.percent(found['error'])},"
            f" published {100 * found['published']:.0f} %"
        )

    return trials.run(all_trials, workdir, report_only=given.report, write=write)


if __name__ == "__main__":
    trials.main(main)
