"""Training curves of runs, as a small JSON file and a picture.

python experiments/reports/curves.py --out=experiments/results/NAME RUN...

Writes NAME.json (config, result and curve of each run, training steps averaged to at most 100
points, date) and NAME.png (loss, top-1 error and learning rate over epochs). A
RUN that is the directory of an experiment stands for the runs in it.
"""

import datetime
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files
from experiments import command_line
from experiments.reports import metrics
from experiments.runs import run_directories

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
MARKERS = "osD^"  # after six runs the colours come again with the next marker
POINTS = 100


def averaged(lines: metrics.Columns) -> dict[str, dict[str, list[float]]]:
    """Return both splits of `lines` as means over at most POINTS parts, and each's last rate."""
    curves = {}
    for split, columns in lines.items():
        number = len(columns["step"])
        parts = np.array_split(np.arange(number), min(POINTS, number)) if number else []
        curves[split] = {
            name: [round(float(column[part].mean()), 4) for part in parts]
            for name, column in columns.items()
        }
        rates = (columns["learning_rate"][part[-1]] for part in parts)
        curves[split]["learning_rate"] = [float(f"{rate:.6g}") for rate in rates]
    return curves


def curve(workdir: pathlib.Path) -> dict[str, Any]:
    """Return config, result (None if it has not ended) and curves of the run in `workdir`.

    Raises InputError where it is no run directory.
    """
    return {
        "config": config_lib.load(workdir / "config.json").to_dict(),
        "result": run_directories.result(workdir),
        "curves": averaged(metrics.read(workdir)[0]),
    }


def plot(runs: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Draw loss, top-1 error and learning rate of `runs` over epochs, at most 24 told apart.

    Training is dotted, validation a marked line. A loss beyond twice that of chance is cut off.
    """
    figure, axes = plt.subplots(
        3, 1, figsize=(10, 9), sharex=True, layout="constrained", height_ratios=(3, 3, 1.4)
    )
    handles = []
    chances = {int(run["config"]["model"]["num_classes"]) for run in runs.values()}
    for i, run in enumerate(runs.values()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        train, val = run["curves"]["train"], run["curves"]["val"]
        for axis, metric, scale in zip(axes, ("loss", "top1_error"), (1, 100), strict=False):
            axis.plot(
                train["epoch"], np.multiply(train[metric], scale), ":", color=colour, linewidth=1
            )
            axis.plot(
                val["epoch"],
                np.multiply(val[metric], scale),
                color=colour,
                marker=marker,
                markersize=4.5,
                linewidth=1.4,
            )
        axes[2].step(train["epoch"], train["learning_rate"], color=colour, where="post")
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4.5))
    for classes in chances:
        axes[0].axhline(np.log(classes), color="0.6", linewidth=0.8)
        axes[1].axhline(100 * (1 - 1 / classes), color="0.6", linewidth=0.8)
    top = 2 * np.log(max(chances))
    cut = axes[0].get_ylim()[1] > top
    axes[0].set(ylabel="loss (nats)", ylim=(0, top if cut else None))
    axes[1].set(ylabel="top-1 error (%)", ylim=(0, 100))
    axes[2].set(xlabel="epoch", ylabel="learning rate")
    if any(rate > 0 for run in runs.values() for rate in run["curves"]["train"]["learning_rate"]):
        axes[2].set_yscale("log")
    axes[2].margins(y=0.15)
    note = "validation; dotted: training;\ngrey: chance"
    note += f"; losses above\n{top:.3g} are cut off" if cut else ""
    labels = [label(name) for name in runs]
    figure.legend(
        handles,
        labels,
        title=note,
        alignment="left",
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def label(name: str, longest: int = 32) -> str:
    """Return `name` as a legend shows it: shortened, and with nothing that is markup there."""
    if len(name) > longest:
        half = longest // 2 - 1
        name = f"{name[:half]}…{name[-half:]}"
    name = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name  # which would hide it


def write(workdirs: Iterable[pathlib.Path], out: pathlib.Path) -> None:
    """Write the curves of the runs in `workdirs` as OUT.json and OUT.png, whole or not at all.

    Raises InputError where one is no run directory, or `out` cannot be written.
    """
    if out.name in ("", ".."):
        raise InputError(f"--out={out} names no file: give a path without extension")
    runs = {name: curve(path) for name, path in run_directories.named(workdirs).items()}
    for run in runs.values():  # where the pictures lay is nobody else's business
        run["config"]["dataset"].update(path="", data_dir="")
    record = {
        "date": datetime.date.today().isoformat(),
        "runs": runs,
    }
    with whole_files(out.parent) as scratch:
        (scratch / f"{out.name}.json").write_text(json.dumps(record) + "\n")
        plot(runs, scratch / f"{out.name}.png")


def main() -> int:
    """Write the curves that the command line asks for; return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=command_line.path, help="run directories")
    parser.add_argument("--out", required=True, type=command_line.path, help="no extension")
    arguments = parser.parse_args()
    write(arguments.runs, arguments.out)
    return 0


if __name__ == "__main__":
    command_line.main(main)
