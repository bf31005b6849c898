"""What each part of the network is worth: the paper's ablations as differences of one config.

    python experiments/ablations.py --config=configs/alexnet.py --data=IMAGENETTE --seeds 0 1 2 \
      --config.model.num_classes=10 --out=experiments/results/ablations

Trains the recipe as it is (`full`) and without one part at a time, with each seed, in
WORKDIR/NAME-seedN; the same command goes on with what was stopped, and --only takes some at a time.
What does not apply to the recipe is named and left out. Writes OUT.json (all runs, mean and
standard deviation), OUT.md (the table, also printed), OUT.csv (errors epoch by epoch) and OUT.png;
by default OUT is WORKDIR/ablations, WORKDIR runs/ablations. Further --config.FIELD=VALUE go to
run.py.
"""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from experiments import command_line, trials
from experiments.curves import COLOURS

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
Differences = dict[str, Any]


class NotApplicable(Exception):
    """The recipe has nothing that this ablation could take away; the text says what."""


def no_lrn(config: ConfigDict) -> Differences:
    """Leave out local response normalisation."""
    return {"model.stages": _stages(config, without="lrn")}


def no_overlap(config: ConfigDict) -> Differences:
    """Pool over windows as large as the stride: maps of an odd side become as large as before."""
    if config.model.pool.window <= config.model.pool.stride:
        raise NotApplicable("its pooling windows do not overlap")
    return {"model.pool.window": config.model.pool.stride}


def half_width(config: ConfigDict) -> Differences:
    """Take half the maps in one column, but in the last convolution as many (section 3.2).

    So the fully connected layers, which hold most parameters, stay what they are.
    """
    *halved, last = config.model.features
    if not halved or min(halved) < 2:
        raise NotApplicable("its layers cannot be halved")
    differences: Differences = {"model.features": (*(width // 2 for width in halved), last)}
    if config.model.groups == 2:
        differences |= {"model.groups": 1, "parallel": "pmap"}
    return differences


def no_colour(config: ConfigDict) -> Differences:
    """Leave the colours as they are."""
    if config.augment.colour_std == 0:
        raise NotApplicable("it does not change colours")
    return {"augment.colour_std": 0.0}


def no_crops_flips(config: ConfigDict) -> Differences:
    """Show every picture whole and as it is: stored at the size of a crop, not reflected."""
    if config.augment.crop == config.dataset.image_size and not config.augment.flip:
        raise NotApplicable("it neither crops nor reflects")
    return {"dataset.image_size": config.augment.crop, "augment.flip": False}


def no_dropout(config: ConfigDict) -> Differences:
    """Drop no units."""
    if config.model.dropout == 0 or not config.model.hidden:
        raise NotApplicable("it has no dropout")
    return {"model.dropout": 0.0}


def tanh(config: ConfigDict) -> Differences:
    """Take tanh for ReLU, and what keeps it from being saturated at the start.

    That is biases of 0 (those of 1 are for ReLU), He's initial weights, and inputs of the order
    of 1.
    """
    stages = _stages(config, without="relu", put="tanh")
    if "tanh" not in stages[-1]:
        raise NotApplicable("its last convolution, which the hidden layers follow, has no ReLU")
    if any(name.startswith("local") for name in config.model.layers):
        raise NotApplicable("He's initial weights are not those of a locally connected layer")
    return {
        "model.stages": stages,
        "model.biases": (0.0,) * len(config.model.biases),
        "model.initializer": "he_normal",
        "model.init_stds": (),
        "model.input_scale": min(config.model.input_scale, 1 / 64),
    }


def bfloat16(config: ConfigDict) -> Differences:
    """Compute in bfloat16: nothing is taken away but bits, and the question is the same."""
    if config.dtype == "bfloat16":
        raise NotApplicable("it computes in bfloat16")
    return {"dtype": "bfloat16"}


def without_layer(config: ConfigDict, *, index: int) -> Differences:
    """Take layer `index` away; the one before takes over its pooling, the one after its name."""
    model = config.model
    pools = [s for s in model.stages[index] if s.endswith("pool")]
    doubled = [s for s in pools if s in model.stages[index - 1]]
    if doubled:
        raise NotApplicable(f"{model.layers[index - 1]} has its {doubled[0]} already")

    def rest(values: tuple) -> tuple:
        return (*values[:index], *values[index + 1 :])

    names = [f"{name.rstrip('0123456789')}{i}" for i, name in enumerate(rest(model.layers), 1)]
    # Who reads both columns: the same layers under their new names, and for one that is taken away
    # the next.
    crossing = {model.layers.index(name) for name in model.cross_layers}
    crossing = {i - (i > index) for i in crossing} & set(range(1, len(names)))
    stages = list(model.stages)
    stages[index - 1] = (*stages[index - 1], *pools)
    per_layer = ("features", "kernels", "strides", "padding", "biases", "init_stds")
    return {
        "model.layers": tuple(names),
        "model.cross_layers": tuple(names[i] for i in sorted(crossing)),
        "model.stages": rest(tuple(stages)),
        **{f"model.{name}": rest(tuple(model[name])) for name in per_layer},
    }


PARTS = (no_lrn, no_overlap, half_width, no_colour, no_crops_flips, no_dropout, tanh, bfloat16)


def _stages(config: ConfigDict, *, without: str, put: str | None = None) -> tuple:
    """Return `model.stages` with `put`, or nothing, in place of `without`."""
    stages = config.model.stages
    if not any(without in of_layer for of_layer in stages):
        raise NotApplicable(f"it has no {without}")
    instead = (put,) if put else ()
    return tuple(
        tuple(new for s in of_layer for new in (instead if s == without else (s,)))
        for of_layer in stages
    )


def ablations(config: ConfigDict) -> tuple[dict[str, Differences], dict[str, str]]:
    """Return the differences of each ablation of `config`, and why others do not apply.

    'full', no difference, comes first. Without which layers: those after conv2.
    """
    makers: dict[str, Callable[[ConfigDict], Differences]] = {f.__name__: f for f in PARTS}
    for index, layer in enumerate(config.model.layers[2:], 2):
        makers[f"without_{layer}"] = functools.partial(without_layer, index=index)
    found: dict[str, Differences] = {"full": {}}
    left_out = {}
    for name, make in makers.items():
        try:
            found[name] = make(config)
            config_lib.validate(changed(config, found[name]))
        except (NotApplicable, InputError) as reason:
            found.pop(name, None)
            left_out[name] = str(reason)
    return found, left_out


def changed(config: ConfigDict, differences: Differences) -> ConfigDict:
    """Return a copy of `config` with `differences`."""
    copy = config.copy_and_resolve_references()
    with copy.ignore_type():
        copy.update_from_flattened_dict(differences)
    return copy


def summary(found: dict[str, Differences], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return of each ablation its differences, errors, and points more than `full`'s mean."""
    table: dict[str, Any] = {}
    for name, differences in found.items():
        ended = [run for run in runs if run["name"] == name and run["status"] == "finished"]
        row: dict[str, Any] = {"differences": differences}
        row["paper"] = PAPER.get(name, PAPER_LAYER if name.startswith("without_") else "")
        for metric in trials.ERRORS:
            of_metric = trials.spread(run[metric] for run in ended)
            full = table["full"][metric]["mean"] if table else of_metric["mean"]
            known = of_metric["mean"] is not None and full is not None
            points = round(100 * (of_metric["mean"] - full), 2) if known else None
            row[metric] = of_metric | {"points_more_than_full": points}
        table[name] = row
    return table


def markdown(table: dict[str, Any]) -> str:
    """Return the table as text: errors in percent, differences in points."""
    lines = [
        "| | n | top-1 error | points more | top-5 error | points more | in the paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        cells = [name, str(row[METRICS[0]]["n"])]
        for metric in METRICS:
            points = row[metric]["points_more_than_full"]
            shown = "" if name == "full" or points is None else f"{points:+.2f}"
            cells += [_percent(row[metric]), shown]
        lines.append("| " + " | ".join([*cells, row["paper"]]) + " |")
    return "\n".join(lines) + "\n"


def _percent(of_metric: dict[str, Any]) -> str:
    return trials.percent(of_metric).partition(" (")[0]


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
    figure.savefig(trials.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/alexnet.py")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these; report all")
    given, overrides = parser.given()
    config = command_line.read_config([f"--config={given.config}", *overrides])
    recipe = given.config.resolve()
    workdir = given.workdir or pathlib.Path("runs/ablations")
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

    def write(runs: list[dict[str, Any]]) -> None:
        table = summary(found, runs)
        labels = command_line.without_places(overrides)
        about = {"recipe": recipe.name, "overrides": labels, "left_out": left_out}
        trials.write_json(about | {"table": table, "runs": runs}, out)
        trials.write_log(all_trials, workdir, out)
        trials.extended(out, ".md").write_text(markdown(table))
        plot(table, runs, trials.label(recipe.stem, overrides), out)

    code = trials.run(
        all_trials,
        workdir,
        train_which=lambda t: not given.report and t.name in (given.only or found),
        write=write,
    )
    print(trials.extended(out, ".md").read_text(), end="")
    return code


if __name__ == "__main__":
    command_line.main(main)
