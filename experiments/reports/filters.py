"""The filters of a first layer as an image, as in figure 3 of the paper.

python experiments/reports/filters.py RUN --out=experiments/results/NAME.png

draws those of the latest checkpoint in the run directory RUN.
"""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files
from alexnet_jax.rundir import mosaic, restoring
from experiments import command_line
from experiments.reports.curves import label

DPI = 100


def plot_filters(kernel: np.ndarray, columns: int, title: str, path: pathlib.Path) -> None:
    """Draw `kernel` (height, width, 3, number), the filters of each column above the next one's."""
    images = [mosaic(part) for part in np.split(np.nan_to_num(kernel), columns, axis=3)]
    height, width = images[0].shape[:2]
    left, right, top, between = (74 if columns > 1 else 10), 10, 34, 14
    whole = (left + max(width, 420) + right, top + columns * (height + between))
    figure = plt.figure(figsize=(whole[0] / DPI, whole[1] / DPI), dpi=DPI)
    figure.text(left / whole[0], 1 - 22 / whole[1], label(title, 52), fontsize=11)
    for i, image in enumerate(images):
        bottom = whole[1] - top - (i + 1) * height - i * between
        place = (left / whole[0], bottom / whole[1], width / whole[0], height / whole[1])
        axis = figure.add_axes(place)
        axis.imshow(image, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        if columns > 1:
            axis.set_ylabel(f"column {i + 1}", fontsize=10, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def main() -> int:
    """Draw what the command line says and return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("run", type=command_line.path, help="run directory")
    parser.add_argument("--title", default="", help="default: the step")
    parser.add_argument("--out", required=True, type=command_line.path, help="a PNG file")
    given = parser.parse_args()
    config, state, _ = restoring.load(given.run, "latest")
    layer, columns = config.model.layers[0], config.model.groups
    kernel = np.asarray(state.params[layer]["kernel"])
    if not layer.startswith("conv") or kernel.shape[2] != 3:
        raise InputError(f"{given.run}: {layer} does not filter images")
    with whole_files(given.out.parent) as scratch:
        title = given.title or f"{layer} after step {int(state.step):,}"
        plot_filters(kernel, columns, title, scratch / given.out.name)
    return 0


if __name__ == "__main__":
    command_line.main(main)
