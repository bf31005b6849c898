"""The filters of a first layer as an image, as in figure 3 of the paper."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from alexnet_jax.rundir import mosaic
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
