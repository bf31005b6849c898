"""Figure 1 of the paper: epochs to 25 % training error with ReLU and with tanh, on CIFAR-10.

    python experiments/paper/figure1.py --data=CIFAR10_PNG --seeds 0 1 2

For each activation the first seed is trained at the --rates in turn, and the one that gets there in
the fewest epochs is taken for the other seeds. A run is stopped when it is there, and in the search
when it has taken longer than the best so far, so that what is searched last costs least. The same
command resumes what was stopped; a run that diverges had too high a rate, and
is not trained again.

Training error is the mean over the last epoch's batches, each before its update (figure 1 does not
say how it was measured). Writes OUT.json (all runs; epochs at the rate taken, and tanh's by ReLU's,
seed by seed, with mean and standard deviation), OUT.csv (errors epoch by epoch) and OUT.png (the
paper's plot); by default OUT is WORKDIR/figure1, WORKDIR runs/figure1. Further
--config.FIELD=VALUE go to run.py.
"""

import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.rundir import LAST_GOOD
from experiments import command_line
from experiments.reports import metrics
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials

RECIPE = ROOT / "configs/figure1.py"
ACTIVATIONS = ("relu", "tanh")
RATES = (0.003, 0.01, 0.001, 0.03, 0.0003)  # from the likely ones outwards
TARGET = 0.25
PAPER = {"relu": 6, "tanh": 36, "ratio": 6}  # epochs as read from the plot, ratio from its caption
STYLES = {"relu": "-", "tanh": "--"}
Runs = tuple[trials.Trial | None, list[trials.Trial]]  # of `all_runs`
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def trial(activation: str, rate: float, seed: int, overrides: tuple[str, ...] = ()) -> trials.Trial:
    """Return the run of figure 1's net with `activation`."""
    stages = command_line.read_config([f"--config={RECIPE}", *overrides]).model.stages
    own = tuple(tuple(activation if s == "relu" else s for s in of_layer) for of_layer in stages)
    differences = {"model.stages": own, "learning_rate": rate}
    return trials.Trial(f"{activation}-lr{rate:.12g}", RECIPE, overrides, differences, seed)


def epochs_to(lines: Iterable[dict[str, Any]], target: float) -> float | None:
    """Return after how many epochs, at least one, the training error of a run is `target`.

    None where it has not come so far. `lines` are those of its metrics.jsonl.
    """
    epochs, errors = metrics.training_errors(lines)
    there = (epochs >= 1) & (errors <= target)
    return float(epochs[np.argmax(there)]) if there.any() else None


def epochs_taken(directory: pathlib.Path) -> float:
    """Return `epochs_to` the target of the run in `directory`, infinity if it is not there."""
    reached = epochs_to(metrics.lines(directory), TARGET)
    return math.inf if reached is None else reached


def beyond(directory: pathlib.Path, limit: float) -> bool:
    """Return whether the run in `directory` is there, or has taken more than `limit` epochs."""
    lines = metrics.lines(directory)
    if epochs_to(lines, TARGET) is not None:
        return True
    return max((line["epoch"] for line in lines), default=0.0) > limit


def best(tried: list[trials.Trial], workdir: pathlib.Path) -> trials.Trial | None:
    """Return that of `tried` which got to the target in the fewest epochs, None where none did."""
    taken = {t.directory(workdir): epochs_taken(t.directory(workdir)) for t in tried}
    first = min(tried, key=lambda t: taken[t.directory(workdir)])
    return None if math.isinf(taken[first.directory(workdir)]) else first


def search(
    tried: list[trials.Trial],
    workdir: pathlib.Path,
    failures: dict[pathlib.Path, str],
    write: Callable[[], Any],
) -> None:
    """Train `tried` to the target, each no longer than the best of those before it.

    After each `write` is called; `failures` gets why one failed.
    """
    limit = math.inf
    for each in tried:
        directory = each.directory(workdir)
        if trials.diverged(each, workdir):
            continue
        enough = functools.partial(beyond, directory, limit)
        if failure := trials.train(each, workdir, enough):
            failures[directory] = failure
        limit = min(limit, epochs_taken(directory))
        write()


def all_runs(tried: list[trials.Trial], seeds: list[int], workdir: pathlib.Path) -> Runs:
    """Return the best of `tried`, None where none is there yet, and all runs, its seeds' too."""
    first = best(tried, workdir)
    return first, [*tried, *(first._replace(seed=seed) for seed in seeds[1:] if first)]


def summary(runs: dict[str, Runs], seeds: list[int], workdir: pathlib.Path) -> dict[str, Any]:
    """Return the result file of the `all_runs` of each activation.

    Means are over the seeds that got to the target; how far others have come is `not_there`.
    """
    result: dict[str, Any] = {"target_training_error": TARGET, "paper": PAPER}
    epochs: dict[str, dict[int, float]] = {}
    for activation, (first, each) in runs.items():
        if first is None:
            continue
        taken = {t.seed: epochs_taken(t.directory(workdir)) for t in each if t.name == first.name}
        epochs[activation] = {seed: e for seed, e in taken.items() if math.isfinite(e)}
        not_there = [first._replace(seed=seed) for seed, e in taken.items() if math.isinf(e)]
        result[activation] = {
            "learning_rate": first.differences["learning_rate"],
            "epochs": trial_records.spread(epochs[activation].values()),
            "not_there": {t.seed: metrics.epochs(t.directory(workdir)) or 0.0 for t in not_there},
        }
    both = [s for s in seeds if all(s in epochs.get(a, {}) for a in ACTIVATIONS)]
    ratios = {s: epochs["tanh"][s] / epochs["relu"][s] for s in both}
    result["tanh_by_relu"] = trial_records.spread(ratios.values()) | {"by_seed": ratios}
    begun = (t for _, each in runs.values() for t in each if t.directory(workdir).exists())
    result["runs"] = [_record(t, workdir) for t in begun]
    return result


def _record(each: trials.Trial, workdir: pathlib.Path) -> dict[str, Any]:
    """Return the record of a run; its status is 'there' if it has got to the target."""
    run = trial_records.record(each, workdir)
    reached = epochs_to(metrics.lines(each.directory(workdir)), TARGET)
    return run | {"epochs_to_target": reached} | ({"status": "there"} if reached else {})


def pending(
    tried: dict[str, list[trials.Trial]], seeds: list[int], workdir: pathlib.Path
) -> list[str]:
    """Return the directory names of the runs that the search, then the other seeds, still need."""
    found = []
    for activation, each in tried.items():
        first, limit = best(each, workdir), math.inf
        for run in each:
            if not trials.ended(run, workdir) and not beyond(run.directory(workdir), limit):
                found.append(run.directory(workdir).name)
            limit = min(limit, epochs_taken(run.directory(workdir)))
        for seed in seeds[1:]:
            if first is None:
                found.append(f"{activation}-seed{seed}")
                continue
            run = first._replace(seed=seed)
            if not trials.ended(run, workdir) and not beyond(run.directory(workdir), math.inf):
                found.append(run.directory(workdir).name)
    return found


def curves(
    first: trials.Trial | None, runs: list[trials.Trial], workdir: pathlib.Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return epochs and training errors of those of `runs` that have the rate of `first`."""
    chosen = [t.directory(workdir) for t in runs if first and t.name == first.name]
    found = [metrics.training_errors(metrics.lines(directory)) for directory in chosen]
    return [curve for curve in found if len(curve[0])]


def plot(
    result: dict[str, Any],
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    out: pathlib.Path,
) -> None:
    """Draw training error over epochs as in the paper, one line per seed, as OUT.png."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for activation, colour in zip(ACTIVATIONS, COLOURS, strict=False):
        for number, (epochs, errors) in enumerate(curves.get(activation, [])):
            label = f"{NAMES[activation]}, rate {result[activation]['learning_rate']:g}"
            shown = np.searchsorted(epochs, np.arange(0.25, epochs[-1] + 0.25, 0.25))
            shown = np.unique(np.minimum(shown, len(epochs) - 1))
            axis.plot(
                epochs[shown],
                errors[shown],
                STYLES[activation],
                color=colour,
                linewidth=1.2,
                label="_" * bool(number) + label,
            )
    axis.axhline(TARGET, color="0.6", linewidth=0.8)
    axis.set(xlabel="epochs", ylabel="training error rate", ylim=(0, 0.9), xlim=(0, None))
    title = trial_records.label("figure1", result["overrides"])
    ratio = result["tanh_by_relu"]
    if ratio["n"]:
        deviation = "" if ratio["std"] is None else f" ± {ratio['std']:.1f}"
        title += (
            f"\nto 25 %: tanh takes {ratio['mean']:.1f}{deviation} times ReLU's epochs"
            f" (n {ratio['n']}; paper: {PAPER['ratio']})"
        )
    axis.set_title(title, fontsize=8)
    if axis.lines[1:]:
        axis.legend(frameon=False)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.TrialsParser(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="in this order")
    given, overrides = parser.given()
    fields = [command_line.field(override) for override in overrides]
    if "learning_rate" in fields:
        raise InputError("--config.learning_rate: the rates are given as --rates 0.001 0.003")
    if "log_every_steps" in fields:
        raise InputError("--config.log_every_steps: the training error is that of every step")
    workdir = given.workdir or pathlib.Path("runs/figure1")
    out = given.out or workdir / "figure1"
    rates = list(dict.fromkeys(given.rates))
    tried = {a: [trial(a, rate, given.seeds[0], overrides) for rate in rates] for a in ACTIVATIONS}
    of_all_seeds = (
        t._replace(seed=seed) for each in tried.values() for t in each for seed in given.seeds
    )
    trials.refuse(of_all_seeds, workdir, training=not given.report)

    def write() -> dict[str, Any]:
        runs = {a: all_runs(each, given.seeds, workdir) for a, each in tried.items()}
        result: dict[str, Any] = {"overrides": command_line.without_places(overrides)}
        result |= summary(runs, given.seeds, workdir)
        result |= {"pending": pending(tried, given.seeds, workdir)}
        with trial_records.replaced(out, result["runs"]) as scratch:
            trial_records.write_json(result, scratch)
            each = (t for _, of_activation in runs.values() for t in of_activation)
            trial_records.write_log(each, workdir, scratch)
            plot(result, {a: curves(*of_a, workdir) for a, of_a in runs.items()}, scratch)
        return result

    write()  # first, so that what cannot be written is known at once
    failures: dict[pathlib.Path, str] = {}
    try:
        for each in [] if given.report else tried.values():
            search(each, workdir, failures, write)
            for of_seed in all_runs(each, given.seeds, workdir)[1][len(each) :]:
                search([of_seed], workdir, failures, write)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
    result = write()
    for activation in ACTIVATIONS:
        _say(activation, result, rates)
    ratio = result["tanh_by_relu"]
    if ratio["n"]:
        number = f"{trial_records.written(ratio)} (n {ratio['n']})"
        print(f"tanh by ReLU: {number}; paper: about {PAPER['ratio']}")
    broken = {d: failure for d, failure in failures.items() if LAST_GOOD not in failure}
    every = [t for each in tried.values() for t in all_runs(each, given.seeds, workdir)[1]]
    known = (t for t in every if not trials.diverged(t, workdir))
    trials.say_failed(known, workdir, broken)
    return 1 if broken else 0


def _say(activation: str, result: dict[str, Any], rates: list[float]) -> None:
    if activation not in result:
        print(f"{NAMES[activation]}: {TARGET:.0%} training error was not reached at any rate")
        return
    epochs, rate = result[activation]["epochs"], result[activation]["learning_rate"]
    print(
        f"{NAMES[activation]}: {trial_records.written(epochs)} epochs (n {epochs['n']}) to"
        f" {TARGET:.0%} training error at rate {rate:g}; paper: about {PAPER[activation]}"
    )
    for seed, done in result[activation]["not_there"].items():
        name = NAMES[activation]
        print(f"{name}: seed {seed}, {done:.1f} epochs, did not reach it: not in the mean")
    if rate in (min(rates), max(rates)):
        print(
            f"{NAMES[activation]}: the best rate is the largest or smallest of --rates; give more",
            file=sys.stderr,
        )


if __name__ == "__main__":
    command_line.main(main)
