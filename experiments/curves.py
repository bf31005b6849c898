"""Training curves of runs, as a small JSON file and a picture.

python experiments/curves.py --out=experiments/results/NAME RUN...

Writes NAME.json (config, result and curve of each run, training steps averaged to at most 100
points, versions, device, date) and NAME.png (loss and top-1 error over epochs).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
POINTS = 100


def curve(workdir: pathlib.Path) -> dict[str, Any]:
    """Return config, result (None if it has not ended) and curves of the run in `workdir`."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    result = workdir / "result.json"
    curves = {}
    for split in ("train", "val"):
        of_split = [line for line in lines if line["split"] == split]
        points = min(POINTS, len(of_split))
        parts = np.array_split(np.arange(len(of_split)), points) if points else []
        names = ("step", "epoch", "loss", "top1_error", "top5_error", "images_per_second")
        curves[split] = {
            name: [round(float(np.mean([of_split[i][name] for i in part])), 4) for part in parts]
            for name in names
        }
    return {
        "config": json.loads((workdir / "config.json").read_text()),
        "result": json.loads(result.read_text()) if result.exists() else None,
        "curves": curves,
    }


def plot(runs: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Draw loss and top-1 error of `runs`, training dotted and validation as marked lines."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
        for axis, metric, scale in zip(axes, ("loss", "top1_error"), (1, 100), strict=True):
            train, val = run["curves"]["train"], run["curves"]["val"]
            axis.plot(train["epoch"], np.multiply(train[metric], scale), ":", color=colour)
            axis.plot(val["epoch"], np.multiply(val[metric], scale), "o-", color=colour, label=name)
            classes = run["config"]["model"]["num_classes"]
            chance = np.log(classes) if metric == "loss" else 100 * (1 - 1 / classes)
            axis.axhline(chance, color="0.6", linewidth=0.8)
    axes[0].set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes[1].set(xlabel="epoch", ylabel="top-1 error (%)", ylim=(0, 100))
    axes[0].legend(title="validation (dotted: training;\ngrey: chance)", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the runs named on the command line and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="path without extension")
    arguments = parser.parse_args()
    runs = {workdir.name: curve(workdir) for workdir in arguments.runs}
    for run in runs.values():  # where the pictures lay is nobody else's business
        run["config"]["dataset"].update(path="", data_dir="")
    record = {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "runs": runs,
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    plot(runs, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
