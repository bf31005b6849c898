"""Trials: runs of run.py that differ by named fields and by seed, trained one after the other.

A trial is an ordinary run in WORKDIR/NAME-seedN. One that was killed resumes, one that has finished
is not trained again, and one that fails is reported while the others continue. What a run prints is
in its log.txt, and why the last session failed, if it did, in its failure.json.
"""

import contextlib
import datetime
import functools
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.optim import total_steps
from alexnet_jax.rundir import LAST_GOOD, check, finished_result, locked, versions
from experiments.command_line import field, read_config, without_places
from experiments.runs import run_process
from experiments.runs.same_images import refuse_other_images, refuse_without_images

ROOT = pathlib.Path(__file__).resolve().parents[2]
SESSIONS = "sessions.jsonl"  # in a trial's directory: when, where and by which code it was trained
FAILURE = "failure.json"  # there: why its last session failed, and under which config
POLL = 10.0  # seconds between two looks at whether a trial has got where it should
DROP = "delete the checkpoints of each run that has finished (of configs/alexnet.py, 1.5 GB)"


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


def refuse(trials: Iterable[Trial], workdir: pathlib.Path, *, training: bool) -> None:
    """Raise InputError unless each of `trials` is valid, and what its directory holds is of it.

    Where they are to be trained, there must be images of as many classes, too, and otherwise a
    run that has been begun.
    """
    trials = list(trials)
    if not training and not any(trial.directory(workdir).exists() for trial in trials):
        first = trials[0].directory(workdir).name
        raise InputError(f"--workdir={workdir} holds none of these runs, such as {first}: there is"
                         " nothing to report")  # fmt: skip
    for trial in trials:
        directory, config = trial.directory(workdir), trial.config()
        check(directory, config)
        refuse_other_images(directory, config.dataset)
        if training:
            refuse_without_images(config.dataset, config.model.num_classes)


def finished(trial: Trial, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Return the result of a trial that has ended as its config has it, None of any other."""
    directory, config = trial.directory(workdir), trial.config()
    try:
        was = config_lib.load(directory / "config.json")
        result = json.loads((directory / "result.json").read_text())
        num_train = round(result["step"] * config.batch_size / result["epoch"])
    except (OSError, InputError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    if config_lib.changed_fields(was, config):
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


def diverged(trial: Trial, workdir: pathlib.Path) -> bool:
    """Return whether `trial` failed because its numbers were not finite, as they would be again."""
    return LAST_GOOD in (failed(trial, workdir) or "")


def ended(trial: Trial, workdir: pathlib.Path) -> bool:
    """Return whether nothing is left to do of `trial`: it has finished or diverged."""
    return finished(trial, workdir) is not None or diverged(trial, workdir)


def train(
    trial: Trial, workdir: pathlib.Path, enough: Callable[[], bool] = lambda: False
) -> str | None:
    """Train `trial` to its end, or until there is `enough()` of it, unless that is so already.

    Returns None, or the line that says why it failed, which `failed` does from then on. Its output
    goes to log.txt and to stderr. On an interrupt the run saves and stops before KeyboardInterrupt
    is raised again.
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
    # A new line before it as well: a kill may have torn the last.
    with (directory / SESSIONS).open("a") as file:
        file.write(f"\n{json.dumps(session)}\n")


@functools.cache
def device() -> str:
    """Return the devices that a run gets, asked of a process of its own, which lets go of them."""
    code = "from alexnet_jax.rundir.version import device; print(device())"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def command(trial: Trial) -> str:
    """Return the command line of `trial` without the places where things lie."""
    recipe = trial.recipe
    shown = recipe.relative_to(ROOT) if recipe.is_relative_to(ROOT) else recipe.name
    rest = without_places(trial.arguments()[1:])
    return " ".join(["run.py", f"--config={shown}", *rest])


def run(
    trials: list[Trial],
    workdir: pathlib.Path,
    *,
    train_which: Callable[[Trial], bool],
    write: Callable[[], object],
    drop_checkpoints: bool = False,
) -> int:
    """Train those of `trials` that are chosen, `write` before and after each; return the exit code.

    It is 0 where all have ended or an interrupt came, 1 where one has failed now. What has diverged
    before is not trained again. With `drop_checkpoints` only the records of finished runs are kept.
    """
    chosen = list(filter(train_which, trials))
    refuse(trials, workdir, training=bool(chosen))  # before the first is trained
    failures: dict[pathlib.Path, str] = {}

    write()  # first, so that what cannot be written is known at once
    try:
        for trial in chosen:
            if diverged(trial, workdir):
                continue
            if failure := train(trial, workdir):
                failures[trial.directory(workdir)] = failure
            elif drop_checkpoints:
                shutil.rmtree(trial.directory(workdir) / "checkpoints", ignore_errors=True)
            write()
    except KeyboardInterrupt:
        write()
        print("stopped; the same command resumes", file=sys.stderr)
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
