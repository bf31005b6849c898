"""A worker of a sweep: it takes a trial, trains it by run.py, and tells the study, until all ended.

Of an Optuna study, what says that a trial is being worked at is a lock on a file in the directory
of the sweep, whatever the storage: the system takes it from a worker that has died, and another
worker resumes the trial in its own directory.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from alexnet_jax.errors import InputError
from alexnet_jax.host import Stop
from alexnet_jax.optim import total_steps
from alexnet_jax.rundir import locked
from experiments import command_line
from experiments.runs import run_process
from experiments.sweeps import sweep_report, sweep_space

FAILURES = 3  # in a row, before a first step: then it is no trial's fault
WAIT = 1.0  # seconds between looks for trials that other workers have left


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, as its command line says it.

    Attributes:
      workdir: its directory, which all its workers see.
      config: the recipe with the overrides; its values of the swept fields do not count.
      space: the distribution of each swept field.
      trials: how many there are to be, of all workers together and whatever their state.
      record: what RECORD holds; a worker with another one is of another sweep.
    """

    workdir: pathlib.Path
    config: ConfigDict
    space: Mapping[str, BaseDistribution]
    trials: int
    record: Mapping[str, Any]

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of trial `number`: a function of it and the seed, as all is here.

        So workers do not draw the same, and an interrupted sweep draws what it would have drawn.
        """
        seed = self.record["seed"]
        if self.record["sampler"] == "grid":
            return optuna.samplers.GridSampler(sweep_space.grid(self.space), seed=seed)
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if self.record["sampler"] == "random":
            return optuna.samplers.RandomSampler(seed=own)
        return optuna.samplers.TPESampler(seed=own)

    def pruner(self) -> optuna.pruners.BasePruner:
        """Return what says of a trial, after an evaluation, whether to end it."""
        if self.record["pruner"] == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(n_warmup_steps=self.record["prune_after"])

    def arguments(self, values: Mapping[str, str], number: int) -> list[str]:
        """Return the arguments of run.py for trial `number`."""
        run = sweep_report.command(self.record["recipe"], self.record["overrides"], values)
        return [*run, f"--workdir={sweep_report.directory(self.workdir, number)}"]


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """Wait until no other worker is in such a context, and keep others out of it."""
    with contextlib.ExitStack() as lock:
        while True:
            try:
                lock.enter_context(locked(workdir))
                break
            except InputError:
                time.sleep(0.05)
        yield


def work(sweep: Sweep, storage: BaseStorage, stop: Stop) -> int:
    """Be one worker of `sweep` until all of its trials have ended, and report."""
    study = optuna.create_study(
        study_name=sweep.record["study"],
        storage=storage,
        direction="minimize",
        pruner=sweep.pruner(),
        load_if_exists=True,
    )
    failures: list[str] = []  # in a row, before a first step
    waiting = False
    while not stop.requested and len(failures) < FAILURES:
        with contextlib.ExitStack() as claim:
            with alone(sweep.workdir):
                trial = _next(sweep, study, storage, claim)
                values = sweep_space.drawn(trial, sweep.space) if trial else {}
            if trial is not None:
                waiting = False
                failed = _train(sweep, study, trial, values, stop)
                failures = [*failures, failed] if failed else []
                continue
        others = [t.number for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        if not others:
            break
        if not waiting:
            print(f"waiting for trials {others} of other workers; Ctrl-C leaves", file=sys.stderr)
            waiting = True
        time.sleep(WAIT)
    if stop.requested:
        print("stopped; the same command continues", file=sys.stderr)
        return 0
    with alone(sweep.workdir):
        print(sweep_report.write(sweep.workdir, sweep.record, study))
    if len(failures) == FAILURES:
        raise InputError(
            f"{FAILURES} trials in a row failed before their first step, the last with:"
            f" {failures[-1]}; fix that; the same command continues with the next trial"
        )
    if all(
        row["state"] == "failed" for row in sweep_report.rows(sweep.workdir, study.get_trials())
    ):
        raise InputError("all trials failed; the table says why")
    return 0


def _next(
    sweep: Sweep, study: optuna.Study, storage: BaseStorage, claim: contextlib.ExitStack
) -> Trial | None:
    """Return a trial that a worker has left, or a new one, and claim it; None if there is neither.

    A claim is a lock on a file, which the system takes from a process that has died.
    """
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for number in [trial.number for trial in left]:
        try:
            claim.enter_context(_claimed(sweep.workdir, number))
        except InputError:
            continue
        study_id = storage.get_study_id_from_name(study.study_name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        if storage.get_trial(trial_id).state == TrialState.RUNNING:
            study.sampler = sweep.sampler(number)
            return Trial(study, trial_id)
        claim.close()  # its worker has ended it meanwhile
    number = len(study.get_trials(deepcopy=False))
    if number >= sweep.trials:
        return None
    claim.enter_context(_claimed(sweep.workdir, number))
    study.sampler = sweep.sampler(number)
    return study.ask()


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, number: int) -> Iterator[None]:
    """Keep trial `number`; raise InputError where its worker or a run that outlived it is there."""
    place = workdir / "claims" / f"{number:04}"
    place.mkdir(parents=True, exist_ok=True)
    run = sweep_report.directory(workdir, number)
    run.mkdir(parents=True, exist_ok=True)
    with locked(place):
        with locked(run):
            pass
        yield


def _train(
    sweep: Sweep, study: optuna.Study, trial: Trial, values: Mapping[str, str], stop: Stop
) -> str | None:
    """Train `trial` to its end, or until it is pruned or stopped, and tell `study` what came of it.

    Returns why it failed, if it did before its first step.
    """
    directory = sweep_report.directory(sweep.workdir, trial.number)
    named = ", ".join(f"{name}={text}" for name, text in values.items())
    print(f"trial {trial.number}: {named}; {directory}", file=sys.stderr)
    *arguments, _ = sweep.arguments(values, trial.number)
    config = command_line.parsed(arguments)
    reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    errors: dict[int, float] = {}
    pruned = stopping = False
    with run_process.running(sweep.arguments(values, trial.number), directory) as process:
        for line in run_process.validations(process, directory):
            if line is not None and not pruned:
                errors[line["step"]] = line["top1_error"]
                pruned = _report(trial, config, line, min(errors.values()), reported)
            if (pruned or stop.requested) and not stopping:
                stopping = True
                run_process.stop(process)
    code = process.returncode
    if pruned:
        _tell(study, trial, TrialState.PRUNED)
    elif code == 0 and (directory / "result.json").exists():
        _tell(study, trial, TrialState.COMPLETE, min(errors.values()))
    elif code == 0 or stopping:
        if not stopping:
            raise InputError(f"{directory} was stopped from outside; the same command continues")
        return None
    else:
        why = run_process.failure(directory, code)
        trial.set_user_attr(sweep_report.FAILURE, why)
        # TPE does not see failed trials and would draw from where numbers overflow again and again.
        _tell(study, trial, TrialState.FAIL if code < 0 else TrialState.PRUNED)
        print(f"trial {trial.number} failed: {why}", file=sys.stderr)
        lines = directory / "metrics.jsonl"
        return None if lines.exists() and lines.stat().st_size else why
    state = "pruned" if pruned else "complete"
    print(f"trial {trial.number} {state}: {min(errors.values()):.2%}", file=sys.stderr)
    return None


def _report(
    trial: Trial, config: ConfigDict, line: Mapping[str, Any], lowest: float, reported: set[int]
) -> bool:
    """Report the lowest error so far at the epoch of `line`; return whether to prune there.

    Trials are compared at equal epochs, for a swept batch size changes the steps. At its end a
    trial is not pruned, for nothing would be spared.
    """
    epoch = int(line["epoch"] + 1e-6)
    if epoch not in reported:
        trial.report(lowest, epoch)
        reported.add(epoch)
    num_train = round(line["step"] * config.batch_size / line["epoch"])
    last = line["step"] >= total_steps(config, num_train)
    return not last and epoch == max(reported) and trial.should_prune()


def _tell(study: optuna.Study, trial: Trial, state: TrialState, value: float | None = None) -> None:
    # GridSampler calls study.stop() after the last point of its grid; here no optimize() runs.
    with contextlib.suppress(RuntimeError):
        study.tell(trial, value, state=state)
