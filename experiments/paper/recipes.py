"""The recipe as published, as the released code trained it, and with what is usual today.

    python experiments/paper/recipes.py --data=IMAGEWOOF --seeds 0 1 2 3 4 \
      --config.model.num_classes=10 --out=experiments/results/recipes

Trains three networks with each seed in WORKDIR/NAME-seedN: `published` is configs/alexnet.py,
`released_code` is configs/alexnet_2012_code.py, and `today` is the first with He's initial weights,
biases of 0, inputs of the order of 1 and dropout that scales in training. The same command resumes
what was stopped. Writes OUT.json, OUT.md (the table, also printed), OUT.csv and OUT.png as
ablations.py does; by default OUT is WORKDIR/recipes, WORKDIR runs/recipes. Further
--config.FIELD=VALUE go to run.py.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments import command_line
from experiments.reports import comparison
from experiments.reports.comparison import Variant
from experiments.runs import trial_records, trials

TODAY = {
    "model.initializer": "he_normal",
    "model.biases": (0.0,) * 8,
    "model.input_scale": 1 / 64,
    "model.dropout_scaling": "train",
}
RECIPES: dict[str, tuple[str, dict]] = {
    "published": ("alexnet", {}),
    "released_code": ("alexnet_2012_code", {}),
    "today": ("alexnet", TODAY),
}
VARIANTS = {
    "published": Variant("published", "18.2 % top-5 on ImageNet"),
    "released_code": Variant("published", "40.7 / 18.2 % on ImageNet"),
    "today": Variant("published"),
}


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--drop_checkpoints", action="store_true", help=trials.DROP)
    given, overrides = parser.given()
    workdir = given.workdir or pathlib.Path("runs/recipes")
    out = given.out or workdir / "recipes"
    all_trials = [
        trials.Trial(name, ROOT / f"configs/{recipe}.py", overrides, differences, seed)
        for name, (recipe, differences) in RECIPES.items()
        for seed in given.seeds
    ]

    def write() -> None:
        runs = trial_records.records(all_trials, workdir)
        table = comparison.summary(VARIANTS, runs)
        found = {"overrides": command_line.without_places(overrides), "table": table, "runs": runs}
        found["pending"] = trial_records.pending(all_trials, workdir)
        with trial_records.replaced(out, runs) as scratch:
            trial_records.write_json(found, scratch)
            trial_records.write_log(all_trials, workdir, scratch)
            comparison.write(table, runs, trial_records.label("recipes", overrides), scratch)

    code = trials.run(
        all_trials,
        workdir,
        train_which=lambda _: not given.report,
        write=write,
        drop_checkpoints=given.drop_checkpoints,
    )
    print(trial_records.extended(out, ".md").read_text(), end="")
    return code


if __name__ == "__main__":
    command_line.main(main)
