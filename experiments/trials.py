"""Trials: runs of run.py that differ by named fields and by seed, trained one after the other.

A trial is an ordinary run in WORKDIR/NAME-seedN. One that has been killed goes on where it was, one
that has ended is not trained again, and one that fails is reported while the others go on. What a
run prints is in its log.txt, and why the last session failed, if it did, in its failure.json.
"""

import contextlib
import csv
import datetime
import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.epochs import total_steps
from alexnet_jax.errors import InputError
from alexnet_jax.fields import CHANGEABLE
from alexnet_jax.version import versions
from alexnet_jax.workdir import check, finished_result, locked
from experiments import metrics, run_process
from experiments.command_line import field, read_config, without_places
from experiments.same_pictures import refuse_other_pictures

ROOT = pathlib.Path(__file__).resolve().parents[1]
SESSIONS = "sessions.jsonl"  # in a trial's directory: when, where and by which code it was trained
FAILURE = "failure.json"  # there: why its last session failed, and under which config
# Fields without an effect on the numbers of a result but rounding: its title leaves them out.
UNSEEN = {"accumulate_steps", "checkpoint_every_steps", "log_every_steps", "parallel"}
EVALUATED = ("loss", "top1_error", "top5_error", "learning_rate")  # of the held-out pictures
ERRORS = ("top1_error", "top5_error", "ten_crop_top1_error", "ten_crop_top5_error")
POLL = 2.0  # seconds between two looks at whether a trial has got where it should


class Trial(NamedTuple):
    """One run: `recipe` with `overrides` ('--config.FIELD=VALUE'), `differences`, and `seed`."""

    name: str
    recipe: pathlib.Path
    overrides: tuple[str, ...]
    differences: dict[str, Any]
    seed: int

    def directory(self, workdir: pathlib.Path) -> pathlib.Path:
        """Return the run directory."""
        return workdir / f"{self.name}-seed{self.seed}"

    def arguments(self) -> list[str]:
        """Return the command line of run.py, without --workdir."""
        own = self.differences | {"seed": self.seed}
        kept = [o for o in self.overrides if field(o) not in own]
        texts = [f"--config.{name}={value}" for name, value in own.items()]
        return [f"--config={self.recipe}", *kept, *texts]

    def config(self) -> ConfigDict:
        """Return the config, valid; raises InputError for what is not."""
        return read_config(self.arguments())


def refuse_others(trials: Iterable[Trial], workdir: pathlib.Path) -> None:
    """Raise InputError unless each of `trials` is valid, and what its directory holds is of it."""
    for trial in trials:
        directory, config = trial.directory(workdir), trial.config()
        check(directory, config)
        refuse_other_pictures(directory, config.dataset)


def finished(trial: Trial, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Return the result of a trial that has ended as its config has it, None of any other."""
    directory, config = trial.directory(workdir), trial.config()
    try:
        was = dict(config_lib.flatten(config_lib.load(directory / "config.json")))
        result = json.loads((directory / "result.json").read_text())
        num_train = round(result["step"] * config.batch_size / result["epoch"])
    except (OSError, InputError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    if any(was[n] != v for n, v in config_lib.flatten(config) if n not in CHANGEABLE):
        return None
    return finished_result(directory, total_steps(config, num_train))


def failed(trial: Trial, workdir: pathlib.Path) -> str | None:
    """Return why the last session of `trial` failed, None if it did not or had another config."""
    try:
        kept = json.loads((trial.directory(workdir) / FAILURE).read_text())
        was = dict(config_lib.flatten(config_lib.from_dict(kept["config"])))
        return str(kept["reason"]) if was == dict(config_lib.flatten(trial.config())) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def train(
    trial: Trial, workdir: pathlib.Path, enough: Callable[[], bool] = lambda: False
) -> str | None:
    """Train `trial` to its end, or until there is `enough()` of it, unless that is so already.

    Returns None, or the line that says why it failed, which `failed` does from then on. Its output
    goes to log.txt and to stderr. On an interrupt the run saves and stops before KeyboardInterrupt
    goes on.
    """

    def done() -> bool:
        return enough() or finished(trial, workdir) is not None

    if done():
        return None
    directory = trial.directory(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory):
            pass
    except InputError as busy:  # with somebody else's session of it, which may well succeed
        return str(busy)
    (directory / FAILURE).unlink(missing_ok=True)
    _note_session(trial, directory)
    arguments = [*trial.arguments(), f"--workdir={directory}"]
    with run_process.echoed(directory), run_process.running(arguments, directory) as process:
        while process.poll() is None and not enough():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
    if done():
        return None
    reason = run_process.failure(directory, process.returncode)
    if process.returncode != 0:  # else somebody has stopped it
        kept = {"reason": reason, "config": trial.config().to_dict()}
        config_lib.write_json(kept, directory / FAILURE)
    return reason


def _note_session(trial: Trial, directory: pathlib.Path) -> None:
    session = {
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "versions": versions(),
        "command": command(trial),
    }
    with (directory / SESSIONS).open("a") as file:
        file.write(json.dumps(session) + "\n")


@functools.cache
def device() -> str:
    """Return the devices that a run gets, asked of a process of its own, which lets go of them."""
    code = "import jax; d = jax.devices(); print(len(d), 'x', d[0].device_kind)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name = asked.stdout.strip().removeprefix("1 x ") or "unknown"
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def command(trial: Trial) -> str:
    """Return the command line of `trial` without the places where things lie."""
    recipe = trial.recipe
    shown = recipe.relative_to(ROOT) if recipe.is_relative_to(ROOT) else recipe.name
    rest = without_places(trial.arguments()[1:])
    return " ".join(["run.py", f"--config={shown}", *rest])


def label(name: str, overrides: Iterable[str]) -> str:
    """Return the title of results: `name`, and the overrides that make them other than it says."""
    kept = [o for o in overrides if "--config.dataset." not in o and field(o) not in UNSEEN]
    changes = [o.removeprefix("--config.") for o in kept]
    return "\n".join(textwrap.wrap(" ".join([name, *changes]), 90))


def write_json(tree: dict[str, Any], out: pathlib.Path) -> None:
    """Write `tree`, with date and code, as OUT.json, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"date": datetime.date.today().isoformat(), "versions": versions()}
    config_lib.write_json(tree | stamp, extended(out, ".json"))


def write_log(trials: Iterable[Trial], workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Write OUT.csv: a row for each evaluation of each of `trials`, and for each epoch begun.

    Errors are fractions; that of training is the mean over the epoch before.
    """
    with io.StringIO(newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["run", "seed", "step", "epoch", "training_top1_error", *EVALUATED])
        for trial in trials:
            lines = metrics.lines(trial.directory(workdir))
            train = [line for line in lines if line["split"] == "train"]
            evaluated = {line["step"]: line for line in lines if line["split"] == "val"}
            epochs, errors = metrics.training_errors(lines)
            begun = np.flatnonzero(np.diff(np.floor(epochs + 1e-9)) > 0) + 1
            steps = [line["step"] for line in train]
            for step in sorted({*evaluated, *(steps[i] for i in [*begun, -1] if steps)}):
                i = max(0, int(np.searchsorted(steps, step, "right")) - 1)
                line = evaluated.get(step, {})
                row = [trial.name, trial.seed, step, f"{line.get('epoch', epochs[i]):.5g}"]
                row += [f"{errors[i]:.4f}", *(f"{line[n]:.5g}" if line else "" for n in EVALUATED)]
                rows.writerow(row)
        extended(out, ".csv").write_text(text.getvalue())


def extended(out: pathlib.Path, extension: str) -> pathlib.Path:
    """Return OUT with `extension`: of lr0.5 the .5 is none."""
    return out.with_name(out.name + extension)


def record(trial: Trial, workdir: pathlib.Path) -> dict[str, Any]:
    """Return what is known of `trial`: its differences, its result if it has ended, its sessions.

    `status` is 'finished', 'failed' (with `failure`) or 'unfinished'; `epoch` how far it has come.
    """
    directory = trial.directory(workdir)
    result = finished(trial, workdir)
    failure = None if result else failed(trial, workdir)
    status = "finished" if result else "failed" if failure else "unfinished"
    found: dict[str, Any] = {
        "name": trial.name,
        "seed": trial.seed,
        "differences": trial.differences,
        "status": status,
    }
    if result:
        found |= {name: result[name] for name in (*ERRORS, "step", "epoch", "seconds")}
    else:
        found |= {"failure": failure} if failure else {}
        found["epoch"] = metrics.epochs(directory) or 0.0
    path = directory / SESSIONS
    sessions = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return found | {"sessions": sessions, "command": command(trial)}


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1; None of fewer than two) and n of `values`."""
    values = list(values)
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def percent(of: dict[str, Any]) -> str:
    """Return what `spread` gives of fractions as text, such as '21.48 +- 0.30 % (n 3)'."""
    if of["mean"] is None:
        return "-"
    deviation = "" if of["std"] is None else f" +- {100 * of['std']:.2f}"
    return f"{100 * of['mean']:.2f}{deviation} % (n {of['n']})"


def run(
    trials: list[Trial],
    workdir: pathlib.Path,
    *,
    train_which: Callable[[Trial], bool],
    write: Callable[[list[dict[str, Any]]], None],
) -> int:
    """Train those of `trials`, `write` the records of all before and after each; return exit code.

    It is 0 where all have ended or an interrupt came, 1 where one has failed now.
    """
    refuse_others(trials, workdir)  # all that is wrong is said before the first is trained
    failures: dict[pathlib.Path, str] = {}

    def write_all() -> None:
        write([record(trial, workdir) for trial in trials])

    write_all()  # first, so that what cannot be written is known at once
    try:
        for trial in filter(train_which, trials):
            if failure := train(trial, workdir):
                failures[trial.directory(workdir)] = failure
            write_all()
    except KeyboardInterrupt:
        write_all()
        print("stopped; the same command goes on where it was", file=sys.stderr)
    say_failed(trials, workdir, failures)
    return 1 if failures else 0


def say_failed(
    trials: Iterable[Trial], workdir: pathlib.Path, failures: Mapping[pathlib.Path, str]
) -> None:
    """Print a line for each of `trials` that is in `failures` or failed the last time."""
    for trial in trials:
        directory = trial.directory(workdir)
        known = None if finished(trial, workdir) else failed(trial, workdir)
        if reason := failures.get(directory) or known:
            log = f"; see {directory / run_process.LOG}"
            print(f"failed: {directory.name}: {reason}{log}", file=sys.stderr)
