"""Whether a network trained twice, and after a kill, is equal to the bit here, and what that costs.

    python experiments/paper/bits.py --workdir=DIR --out=experiments/results/bits -- \
      --config=configs/alexnet.py --config.num_steps=200 --config.checkpoint_every_steps=50 ...

What follows `--` is the command line of run.py without --workdir. It is run in two settings:
`plain`, as it is, and `deterministic`, with the XLA_FLAGS of docs/reliability.md. In each a run is
trained twice, and a third time with a SIGKILL after half of its steps. Everything is compiled
again each time, because what a GPU's compiler picks by timing may differ between compilations. The
second and third are compared with the first: every line of metrics, the result, the state in every
checkpoint. Writes OUT.json (what differs, images per second), OUT.csv and OUT.png; a setting that
OUT.json has of the same command is not run again.
"""

import csv
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from alexnet_jax.errors import InputError
from experiments import command_line
from experiments.reports import metrics
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials
from experiments.runs.run_differences import differences, saved_steps
from experiments.runs.run_phases import POLL, Layout, Process

FLAGS = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
SETTINGS = {"plain": "", "deterministic": FLAGS}


def straight(layout: Layout, name: str) -> pathlib.Path:
    """Run the command of `layout` to its end in the directory `name`, and return that."""
    workdir = layout.directory / name
    workdir.mkdir(parents=True)
    _run_to_the_end(layout, workdir)
    return workdir


def killed(layout: Layout, name: str) -> pathlib.Path:
    """As `straight`, but after half of the steps the run is killed, and resumed from its save."""
    workdir = layout.directory / name
    workdir.mkdir(parents=True)
    with Process(layout, workdir, _cache(layout, workdir)) as process:
        while process.alive(POLL):
            phase, step = process.shown()
            if phase == "train" and step >= layout.evaluated[-1] // 2 and saved_steps(workdir):
                break
        else:
            raise InputError(f"{workdir} ended before it was killed; raise config.num_steps")
        process.send(signal.SIGKILL)
        process.end(signal.SIGKILL)
    _run_to_the_end(layout, workdir)
    return workdir


def _run_to_the_end(layout: Layout, workdir: pathlib.Path) -> None:
    with Process(layout, workdir, _cache(layout, workdir)) as process:
        code, wrong = process.end()
        if code or wrong:
            said = re.findall(r"^error: .*", process.said(), re.MULTILINE) or wrong or ["no result"]
            raise InputError(f"{workdir}: exit code {code}: {said[-1][-500:]}")


def _cache(layout: Layout, workdir: pathlib.Path) -> pathlib.Path:
    cache = layout.directory / "cache" / workdir.name
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(mode=0o700, parents=True)
    return cache


def compare(setting: str, workdir: pathlib.Path, arguments: list[str]) -> dict[str, Any]:
    """Return what is recorded of `setting`: what differs between its runs, and their speed."""
    directory = workdir.resolve() / setting
    shutil.rmtree(directory, ignore_errors=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} {SETTINGS[setting]}".strip()
    command = (sys.executable, str(ROOT / "run.py"), *arguments)
    layout = Layout(directory, command, os.environ | {"XLA_FLAGS": flags})
    first = straight(layout, "first")
    of_val = [line["step"] for line in metrics.lines(first) if line["split"] == "val"]
    layout = dataclasses.replace(layout, evaluated=tuple(of_val))
    second, resumed = straight(layout, "second"), killed(layout, "killed")
    found = {
        "name": setting,
        "status": "finished",
        "flags": SETTINGS[setting],
        "trained_twice_differs_in": differences(first, second),
        "after_a_kill_differs_in": differences(first, resumed),
        "images_per_second": [_rate(path) for path in (first, second)],
        "steps": of_val[-1],
        "device": trials.device(),
    }
    shutil.rmtree(directory)
    return found


def _rate(workdir: pathlib.Path) -> float:
    """Return the median images per second of the second half of the logged steps."""
    rates = [line["images_per_second"] for line in metrics.lines(workdir)
             if line["split"] == "train"]  # fmt: skip
    return statistics.median(rates[len(rates) // 2 :])


def write(found: dict[str, Any], out: pathlib.Path) -> None:
    """Write OUT.json, OUT.csv and OUT.png."""
    with trial_records.replaced(out, found["runs"]) as scratch:
        trial_records.write_json(found, scratch)
        with trial_records.extended(scratch, ".csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["setting", "twice_differs_in", "killed_differs_in", "images_per_second"])
            for run in found["runs"]:
                kinds = ("trained_twice_differs_in", "after_a_kill_differs_in")
                rate = f"{max(run['images_per_second']):.1f}"
                rows.writerow([run["name"], *(len(run[kind]) for kind in kinds), rate])
        figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
        for row, run in enumerate(found["runs"]):
            rate = max(run["images_per_second"])
            axis.barh(row, rate, color=COLOURS[row])
            equal = not run["trained_twice_differs_in"] and not run["after_a_kill_differs_in"]
            axis.text(rate / 50, row, "equal to the bit" if equal else "differs", va="center",
                      color="white")  # fmt: skip
        axis.set_yticks(range(len(found["runs"])), [run["name"] for run in found["runs"]])
        axis.set(xlabel="training, images per second")
        axis.set_title(", ".join(sorted({run["device"] for run in found["runs"]})), fontsize=9)
        figure.savefig(trial_records.extended(scratch, ".png"), dpi=110)
        plt.close(figure)


def main() -> int:
    """Do what the command line says; return 1 if runs with the flags differ."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--workdir", type=command_line.path, default=pathlib.Path("runs/bits"))
    parser.add_argument("--out", type=command_line.path, help="of the results, without extension")
    parser.add_argument("arguments", nargs="+", help="of run.py, after --")
    given = parser.parse_args()
    command_line.read_config(given.arguments)
    out = given.out or given.workdir / "bits"
    file = trial_records.extended(out, ".json")
    shown = command_line.without_places(given.arguments)
    recorded = json.loads(file.read_text()) if file.exists() else {}
    runs = recorded["runs"] if recorded.get("arguments") == shown else []
    for setting in SETTINGS:
        if setting not in [run["name"] for run in runs]:
            runs.append(compare(setting, given.workdir, given.arguments))
            pending = [s for s in SETTINGS if s not in [run["name"] for run in runs]]
            write({"arguments": shown, "runs": runs, "pending": pending}, out)
    for run in runs:
        rate = max(run["images_per_second"])
        print(f"{run['name']}: {rate:.0f} images/s; trained twice,"
              f" {run['trained_twice_differs_in'] or 'equal to the bit'}; after a kill,"
              f" {run['after_a_kill_differs_in'] or 'equal to the bit'}")  # fmt: skip
    of_flags = next(run for run in runs if run["name"] == "deterministic")
    return int(bool(of_flags["trained_twice_differs_in"] or of_flags["after_a_kill_differs_in"]))


if __name__ == "__main__":
    command_line.main(main)
