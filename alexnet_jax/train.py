"""Training: the loop around the step."""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import exchange, optim
from alexnet_jax.errors import NotFinite
from alexnet_jax.evaluate import EVALUATIONS, validation_metrics
from alexnet_jax.host import StopRequest, processes
from alexnet_jax.optim import evaluation_due, total_steps
from alexnet_jax.programs import Programs, compile_programs, train_batches
from alexnet_jax.rundir import (
    Checkpoints,
    MetricsWriter,
    RunRecord,
    device,
    resume,
    rewind_or_stop,
    versions,
)
from alexnet_jax.setting import Setting, open_setting
from alexnet_jax.state import TrainState


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Train the network of `config`, or continue the run in `workdir`, and return its result.

    As `run.py` does, but for a notebook or another program: signals keep their handlers, and no
    setting of the process changes. Interrupted (KeyboardInterrupt), the run loses what it did since
    the last checkpoint; the same call continues from there, in the same process or another.

    Args:
      config: as a recipe's get_config() returns it, with what fields were changed.
      workdir: the run directory; made if it does not exist.
      callback: called with each line of metrics.jsonl as a dict, after it is written: with `split`
        'train' for each logged step (one step late, so that the devices need not wait), and 'val'
        for each evaluation. What it raises ends the training.

    Returns:
      What `result.json` holds: `step`, `epoch`, `best_step`, `top1_error`, ...

    Raises:
      InputError: the config is not valid, the data, the devices or the run in `workdir` do not fit
        it, or another process trains there.
      NotFinite: a number of the run became NaN or infinite.
    """
    stop = contextlib.nullcontext(StopRequest())  # which nobody requests
    result = train_and_evaluate(config, pathlib.Path(workdir), stop, callback)
    assert result is not None  # None only after a stop
    return result


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    stop: contextlib.AbstractContextManager[StopRequest] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any] | None:
    """Train the network of `config`, or continue the run in `workdir`, and return its result.

    Args:
      config: as a recipe's get_config() returns it, with what fields were changed.
      workdir: the run directory; made if it does not exist.
      stop: context whose `requested` is polled between steps; by default SIGINT and SIGTERM set it.
      callback: see `train`.

    Returns:
      What `result.json` holds; None where a signal asked to stop before the end. The same call
      then continues at the next step.

    Raises:
      InputError: the config is not valid, the data, the devices or the run in `workdir` do not fit
        it, or another process trains there.
      NotFinite: a number of the run became NaN or infinite.
    """
    workdir, primary = pathlib.Path(workdir), jax.process_index() == 0  # of several one writes
    config_lib.validate(config)
    resume.check(workdir, config)
    if config.init_from and resume.is_new(workdir):
        # Before the data are prepared, which may say how many classes there are: 2 stand in for it.
        exchange.check(config_lib.with_num_classes(config, 2))
    setting = open_setting(config)
    config = setting.config  # with the number of classes, where it was not given
    resume.check(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
    lock = resume.locked(workdir) if primary else contextlib.nullcontext()
    with lock, Checkpoints(workdir, keep=config.checkpoint_keep) as checkpoints:
        rewinds = processes.from_first(resume.rewinds(workdir))
        state, record = _begin(setting, workdir, checkpoints, rewinds)
        if primary:
            config_lib.save(config, workdir / "config.json")
        if finished := _finished(setting, workdir, int(state.step)):
            return finished
        programs = compile_programs(setting, state)
        # Before this there is nothing that a signal could lose.
        with StopRequest() if stop is None else stop as here:
            setting = dataclasses.replace(
                setting,
                stop=processes.together(here),
                checkpoints=checkpoints,
                callback=callback,
            )
            while True:
                try:
                    result = _run(setting, workdir, programs, state, record)
                    break
                except NotFinite as error:
                    rewinds = record.rewinds + 1
                    rewind_or_stop(config, workdir, error, rewinds, checkpoints)
                    state, record = _begin(setting, workdir, checkpoints, rewinds)
            if primary and result is not None:
                config_lib.write_json(result, workdir / "result.json")
    return result


def _begin(
    setting: Setting, workdir: pathlib.Path, checkpoints: Checkpoints, rewinds: int
) -> tuple[TrainState, RunRecord]:
    """Return `resume.begin`, with the weights of `config.init_from` where the run is new."""
    config = setting.config
    state, record = resume.begin(config, workdir, setting.dataset, checkpoints, rewinds)
    if config.init_from and int(state.step) == 0:
        state = exchange.initialised(state, config)
    return state, record


def _run(
    setting: Setting, workdir: pathlib.Path, programs: Programs, state: TrainState, run: RunRecord
) -> dict[str, Any] | None:
    """Take the steps that are left, evaluating and saving in between, and return the result.

    `state` is on one device, and `run`, its record, is kept up to date. Returns None if a stop was
    requested.
    """
    config, dataset, sharding = setting.config, setting.dataset, setting.sharding
    checkpoints, stop, first = setting.checkpoints, setting.stop, int(state.step)
    assert checkpoints is not None  # None only in benchmarks
    num_steps = total_steps(config, dataset.num_train)
    state = sharding.replicate(state)
    batches = train_batches(setting, programs.train, programs.cached, first)
    with MetricsWriter(workdir, config, dataset.num_train, first, run) as writer:
        writer.callback = setting.callback
        for step in range(first, num_steps + 1):
            if step > first:
                state, metrics = programs.train(state, next(batches))
                writer.train(step, metrics, dataset.num_damaged)
                checkpoints.check()
                run.validation = None

            evaluated = False
            due = evaluation_due(config, step, dataset.num_train)
            if run.validation is None and (due or step == num_steps):
                writer.flush()
                run.validation = validation_metrics(programs.evaluate, state, setting)
                if run.validation is not None:
                    evaluated = True
                    state, schedule = _schedule(setting, state, run, step, due)
                    writer.validation(step, run.validation | schedule)
                writer.resume_clock(step)

            stopping = stop.requested  # once: a stop that comes later than this saves later
            save = stopping or step % config.checkpoint_every_steps == 0
            if evaluated or (save and step > first):
                one_copy = sharding.unreplicate(state)
                if evaluated:
                    writer.filters(step, one_copy.params)
                writer.sync()  # metrics reach the disk before their checkpoint
                run.seconds = writer.seconds()
                checkpoints.save(step, one_copy, run)
                del one_copy  # its memory is free as soon as it is saved
                writer.resume_clock(step)
            if stopping:
                break

        checkpoints.wait()
        ten_crops = None
        if not stopping:
            ten_crops = validation_metrics(programs.ten_crop, state, setting, EVALUATIONS[1])
        if ten_crops is None:
            line = f"stopped at step {step} of {num_steps}; the same command continues"
            print(line, file=sys.stderr)
            return None
        return _result(setting, run, ten_crops, writer.seconds())


def _finished(setting: Setting, workdir: pathlib.Path, step: int) -> dict[str, Any] | None:
    """Return the result of a finished run; otherwise print the start step and delete result.json.

    An existing result.json is of a shorter run, which is now being extended.
    """
    num_steps = total_steps(setting.config, setting.dataset.num_train)
    primary = jax.process_index() == 0
    result = resume.finished_result(workdir, num_steps) if step == num_steps else None
    if result is not None:
        if primary:
            print(
                f"{workdir} has finished already; raise config.num_epochs or config.num_steps to"
                " continue it",
                file=sys.stderr,
            )
        return result
    if primary:
        (workdir / "result.json").unlink(missing_ok=True)
        if step:
            print(f"resuming from step {step} of {num_steps}", file=sys.stderr)
    return None


def _schedule(
    setting: Setting, state: TrainState, run: RunRecord, step: int, due: bool
) -> tuple[TrainState, dict[str, float]]:
    """Return the state after the evaluation of `step`, and what its line says of the schedule.

    The plateau counts evaluations that are `due`. The one at the end of a run is not, unless a
    period ends there, because the run may be made longer.
    """
    config, sharding = setting.config, setting.sharding
    before = sharding.unreplicate(state.plateau)
    num_train = setting.dataset.num_train
    rate = optim.learning_rate(config, step - 1, float(before.scale), num_train)
    line = {"learning_rate": float(rate)}
    if not due or config.schedule != "plateau":
        return state, line
    assert run.validation is not None
    plateau = optim.plateau_after(before, run.validation["top1_error"], **config.plateau)
    line |= {
        "plateau_best": float(plateau.best_value),
        "plateau_count": int(plateau.plateau_count),
        "plateau_scale": float(plateau.scale),
    }
    return dataclasses.replace(state, plateau=sharding.replicate(plateau)), line


def _result(
    setting: Setting, run: RunRecord, ten_crops: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Return what `result.json` holds."""
    assert run.validation is not None and setting.checkpoints is not None
    num_steps = total_steps(setting.config, setting.dataset.num_train)
    return {
        "step": num_steps,
        "epoch": num_steps * setting.config.batch_size / setting.dataset.num_train,
        "best_step": setting.checkpoints.best(),
        "top1_error": run.validation["top1_error"],
        "top5_error": run.validation["top5_error"],
        "ten_crop_top1_error": ten_crops["top1_error"],
        "ten_crop_top5_error": ten_crops["top5_error"],
        "seconds": seconds,
        "skipped_records": setting.dataset.num_damaged,
        "rewinds": run.rewinds,
        "device": device(),
        "versions": versions(),
    }
