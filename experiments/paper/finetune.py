"""Fine-tuning against training from scratch, on few images per class.

    python experiments/paper/finetune.py --pretrain=IMAGEWOOF --data=IMAGENETTE --seeds 0 1 2

Trains configs/folder.py on all images of --pretrain, once. Then, with each seed, on the first
--per_class images of each class of --data (its held-out images are all kept):

* `scratch`: configs/folder.py, from initial weights;
* `finetune`: configs/finetune.py, from the pretrained network;
* `tenth`: the same with a tenth of the rate for what was loaded;
* `same_rate`: the same with the rate of the last layer for all, none frozen;
* `probe`: the same with all layers but the last one frozen.

All take the same number of steps with the same schedule, that of configs/finetune.py. Runs are in
WORKDIR/NAME-seedN; the same command resumes what was stopped. Writes OUT.json (each run's errors,
mean and standard deviation of each kind), OUT.csv (errors epoch by epoch) and OUT.png (curves); by
default OUT is WORKDIR/finetune, WORKDIR runs/finetune. Both folders hold train/<class>/ and
val/<class>/. Further --config.FIELD=VALUE go to run.py, of all runs, and label the result.
"""

import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from alexnet_jax.errors import InputError
from alexnet_jax.layers import layer_names
from experiments import command_line
from experiments.reports import metrics
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials

PRETRAINED = "pretrained"
KINDS = {
    "scratch": "from scratch",
    "probe": "pretrained, last layer trained",
    "tenth": "pretrained, a tenth of the rate",
    "finetune": "pretrained, fine-tuned",
    "same_rate": "pretrained, the same rate",
}
FOLDER, FINETUNE = ROOT / "configs/folder.py", ROOT / "configs/finetune.py"
SCHEDULE = ("num_epochs", "milestones", "eval_every_epochs")


def few_images(folder: pathlib.Path, per_class: int, out: pathlib.Path) -> pathlib.Path:
    """Return the folder `out` of links to images of `folder`: the first ones of each class.

    The names decide which are the first. Held-out images are all linked. Raises InputError where a
    class has less.
    """
    for split, number in (("train", per_class), ("val", None)):
        try:
            classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
        except OSError as error:
            raise InputError(f"{folder / split} cannot be listed ({error.strerror})") from error
        for class_ in classes:
            files = sorted(class_.iterdir())[:number]
            if len(files) < (number or 1):
                raise InputError(f"{class_} has {len(files)} images of --per_class={number}")
            links = out / split / class_.name
            links.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (links / file.name).exists():
                    (links / file.name).symlink_to(file.absolute())
    return out


def runs_of(
    overrides: tuple[str, ...],
    pretrain: pathlib.Path,
    few: pathlib.Path,
    workdir: pathlib.Path,
    seeds: list[int],
) -> list[trials.Trial]:
    """Return the run that is pretrained on a folder, and those on `few` of each kind and seed."""

    def on(folder: pathlib.Path, *more: str) -> tuple[str, ...]:
        return (*overrides, f"--config.dataset.path={folder.absolute()}", *more)

    recipe = command_line.read_config([f"--config={FINETUNE}", *on(few)])
    schedule = {name: recipe[name] for name in SCHEDULE}
    loaded_layers = layer_names(recipe.model)[:-1]
    factors = {
        "probe": tuple((f"{layer}/*", 0.0) for layer in loaded_layers),
        "tenth": tuple((names, min(factor, 0.1)) for names, factor in recipe.lr_multipliers),
        "finetune": recipe.lr_multipliers,
        "same_rate": (),
    }
    first = trials.Trial(PRETRAINED, FOLDER, on(pretrain), schedule, 0)
    loaded = on(few, f"--config.init_from={first.directory(workdir).absolute()}")
    found = [first]
    for seed in seeds:
        found.append(trials.Trial("scratch", FOLDER, on(few), schedule, seed))
        for name, of_layers in factors.items():
            differences = {"lr_multipliers": of_layers}
            found.append(trials.Trial(name, FINETUNE, loaded, differences, seed))
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors over the seeds of each kind that have ended."""
    return {
        kind: {
            metric: trial_records.spread(
                run[metric] for run in runs if (run["name"], run["status"]) == (kind, "finished")
            )
            for metric in trial_records.ERRORS
        }
        for kind in (PRETRAINED, *KINDS)
    }


def plot(
    all_trials: list[trials.Trial], workdir: pathlib.Path, title: str, out: pathlib.Path
) -> None:
    """Draw the error on held-out images over epochs, a line per run, as OUT.png."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    colours = dict(zip(KINDS, COLOURS, strict=False))
    for trial in all_trials:
        lines = metrics.lines(trial.directory(workdir))
        found = [line for line in lines if line["split"] == "val"]
        if trial.name in KINDS:
            axis.plot(
                [line["epoch"] for line in found],
                [100 * line["top1_error"] for line in found],
                color=colours[trial.name],
                linewidth=1,
                marker=".",
            )
    handles = [Line2D([], [], color=colours[kind], label=text) for kind, text in KINDS.items()]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=2)
    axis.set(xlabel="epoch, a line per seed", ylabel="top-1 error on held-out images (%)")
    axis.set_xlim(0, None)
    axis.set_title(title, fontsize=8)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--pretrain", required=True, type=command_line.path, help="a folder")
    parser.add_argument("--per_class", type=int, default=100, help="images; default: 100")
    given, overrides = parser.given()
    if given.data is None or not command_line.path(given.data).is_dir():
        raise InputError("--data=FOLDER is needed, with train/<class>/ and val/<class>/")
    overrides = tuple(o for o in overrides if command_line.field(o) != "dataset.path")
    workdir = given.workdir or pathlib.Path("runs/finetune")
    out = given.out or workdir / "finetune"
    few = few_images(command_line.path(given.data), given.per_class, workdir / "few")
    all_trials = runs_of(overrides, given.pretrain, few, workdir, given.seeds)
    labels = command_line.without_places(overrides)
    table: dict[str, Any] = {}

    def write() -> None:
        runs = trial_records.records(all_trials, workdir)
        table.update(summary(runs))
        about = {"overrides": labels, "per_class": given.per_class}
        title = trial_records.label(f"{given.per_class} images per class", overrides)
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json(about | {"errors": table, "runs": runs}, scratch)
            trial_records.write_log(all_trials, workdir, scratch)
            plot(all_trials, workdir, title, scratch)

    code = trials.run(all_trials, workdir, train_which=lambda _: not given.report, write=write)
    for kind, text in KINDS.items():
        error = table[kind]["top1_error"]
        print(f"{text}: {trial_records.written(error, scale=100)} % (n {error['n']})")
    return code


if __name__ == "__main__":
    command_line.main(main)
