"""The plots of a sweep, by Optuna: the error over each field, and over the trials in order."""

import pathlib
import warnings
from collections.abc import Iterable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.ticker import Formatter, PercentFormatter
from optuna.visualization.matplotlib import plot_optimization_history, plot_slice

ERROR = "validation top-1 error"


def plot(study: optuna.Study, folder: pathlib.Path) -> None:
    """Write fields.png and trials.png, which show the complete trials, into `folder`.

    `study` has at least one complete trial.
    """
    # Optuna sets a style for the whole process, and warns that its plots are experimental.
    with plt.style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _save(np.ravel(np.array(plot_slice(study, target_name=ERROR))), folder / "fields.png")
        _save([plot_optimization_history(study, target_name=ERROR)], folder / "trials.png")


class _Unquoted(Formatter):
    """Optuna writes each value of a categorical field in quotes."""

    def __init__(self, quoted: Formatter) -> None:
        self.quoted = quoted

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.quoted(x, pos).strip("'\"")


def _save(axes: Iterable[Axes], path: pathlib.Path) -> None:
    """Save the current figure, that of `axes`: errors in percent, texts that do not overlap."""
    for axis in axes:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        texts = axis.xaxis.get_major_formatter()
        if isinstance(texts, StrCategoryFormatter):
            axis.xaxis.set_major_formatter(_Unquoted(texts))
            plt.setp(axis.get_xticklabels(), rotation=30, ha="right")
    plt.savefig(path, dpi=110, bbox_inches="tight")
    plt.close()
