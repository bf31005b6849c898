"""What each part of the network is worth: the paper's ablations as differences of one config.

    python experiments/paper/ablations.py --config=configs/alexnet.py --data=IMAGENETTE \
      --seeds 0 1 2 --config.model.num_classes=10 --out=experiments/results/ablations

Trains the recipe as it is (`full`) and without one part at a time, with each seed, in
WORKDIR/NAME-seedN; the same command resumes what was stopped, and --only takes some at a time.
What does not apply to the recipe is named and left out. Writes OUT.json (all runs, mean and
standard deviation, differences and their standard errors), OUT.md (the table, also printed),
OUT.csv (errors epoch by epoch) and OUT.png (the differences); by default OUT is WORKDIR/ablations,
WORKDIR runs/ablations/RECIPE. Further --config.FIELD=VALUE go to run.py.
"""

import pathlib
import sys
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alexnet_jax.errors import InputError
from experiments import command_line
from experiments.paper.ablated_configs import ablations
from experiments.reports import comparison
from experiments.reports.comparison import Variant
from experiments.runs import trial_records, trials

# What the paper says a part is worth: points of top-1 and top-5 error, or words.
PAPER = {
    "no_lrn": "1.4 / 1.2",
    "no_overlap": "0.4 / 0.3",
    "half_width": "1.7 / 1.2 against two columns",
    "no_colour": "more than 1 top-1",
    "no_crops_flips": "overfits badly",
    "no_dropout": "overfits badly",
    "tanh": "slower (figure 1)",
}
PAPER_LAYER = "about 2 top-1"


def variants(names: Iterable[str]) -> dict[str, Variant]:
    """Return what each ablation of a recipe is compared with: `full`, or as in the paper."""
    names = list(names)
    found = {n: Variant("full", PAPER.get(n, PAPER_LAYER if "without" in n else "")) for n in names}
    if "two_columns" in names and "half_width" in names:
        found["half_width"] = found["half_width"]._replace(against="two_columns")
    return found


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--config", type=command_line.path, default=ROOT / "configs/alexnet.py")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these; report all")
    parser.add_argument("--drop_checkpoints", action="store_true", help=trials.DROP)
    given, overrides = parser.given()
    config = command_line.read_config([f"--config={given.config}", *overrides])
    recipe = given.config.resolve()
    workdir = given.workdir or pathlib.Path("runs/ablations") / recipe.stem
    out = given.out or workdir / "ablations"
    found, left_out = ablations(config)
    for name in given.only or []:
        if name not in found:
            reason = f" does not apply: {left_out[name]}" if name in left_out else " does not exist"
            raise InputError(f"--only={name}{reason}; of this recipe there are {', '.join(found)}")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    all_trials = [
        trials.Trial(name, recipe, overrides, differences, seed)
        for name, differences in found.items()
        for seed in given.seeds
    ]

    def chosen(trial: trials.Trial) -> bool:
        return trial.name in (given.only or found)

    def write() -> None:
        runs = trial_records.records(all_trials, workdir)
        table = comparison.summary(variants(found), runs)
        labels = command_line.without_places(overrides)
        about = {"recipe": recipe.name, "overrides": labels, "left_out": left_out}
        about |= {"pending": trial_records.pending(filter(chosen, all_trials), workdir)}
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json(about | {"table": table, "runs": runs}, scratch)
            trial_records.write_log(all_trials, workdir, scratch)
            title = trial_records.label(recipe.stem, overrides)
            comparison.write(table, runs, title, scratch)

    code = trials.run(
        all_trials,
        workdir,
        train_which=lambda trial: not given.report and chosen(trial),
        write=write,
        drop_checkpoints=given.drop_checkpoints,
    )
    print(trial_records.extended(out, ".md").read_text(), end="")
    return code


if __name__ == "__main__":
    command_line.main(main)
