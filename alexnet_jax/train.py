"""Training: the loop around the step."""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import data, optim, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.data import device_cache, to_devices
from alexnet_jax.errors import InputError, NotFinite
from alexnet_jax.evaluate import eval_batch_size, eval_steps, evaluate
from alexnet_jax.host import Stop, StopRequest, free_bytes, processes
from alexnet_jax.layers import step_bytes
from alexnet_jax.optim import evaluation_due, total_steps
from alexnet_jax.prepare import check_classes, prepare
from alexnet_jax.rundir import MetricsWriter, checkpoint, device, rewind_or_stop, versions
from alexnet_jax.rundir import resume as workdir_lib
from alexnet_jax.state import TrainState, abstract_state
from alexnet_jax.step import train_step


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Train the network of `config`, or continue the run in `workdir`, and return its result.

    Args:
      config: a valid config (config.validate).
      workdir: the run directory; made if it is not there.

    Returns:
      What `result.json` holds; None where a signal asked to stop before the end. The same call
      then continues at the next step.

    Raises:
      InputError: the data, the devices or the run in `workdir` do not fit the config, or another
        process trains there.
      NotFinite: a number of the run became NaN or infinite.
    """
    layout = parallel.layout(config)
    refuse_too_large(config, layout)
    workdir_lib.check(workdir, config)
    num_classes = config.model.num_classes
    directory = prepare(config.dataset, num_classes=num_classes)
    dataset = data.open_dataset(directory, config.dataset.on_error)
    check_classes(num_classes, dataset.class_names, config.dataset.name)
    if config.dataset.cache == "device":
        device_cache.refuse_too_large(dataset, layout.shares)
    workdir.mkdir(parents=True, exist_ok=True)
    primary = jax.process_index() == 0  # of several processes one writes
    lock = workdir_lib.locked(workdir) if primary else contextlib.nullcontext()
    with lock, StopRequest() as here, checkpoint.Checkpoints(workdir) as checkpoints:
        stop = processes.together(here)
        rewinds = processes.from_first(workdir_lib.rewinds(workdir))
        while True:
            state, run = workdir_lib.begin(config, workdir, dataset, checkpoints, rewinds)
            if primary:
                config_lib.save(config, workdir / "config.json")
            try:
                result = _run(config, workdir, dataset, layout, state, run, checkpoints, stop)
                break
            except NotFinite as error:
                rewinds = run["rewinds"] + 1
                rewind_or_stop(config, workdir, error, rewinds, checkpoints)
        if primary and result is not None:
            config_lib.write_json(result, workdir / "result.json")
    return result


def _run(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    layout: parallel.Pmap | parallel.Split,
    state: TrainState,
    run: dict[str, Any],
    checkpoints: checkpoint.Checkpoints,
    stop: Stop,
) -> dict[str, Any] | None:
    """Return the result of the run that goes on from `state`, None where a stop came first."""
    num_steps = total_steps(config, dataset.num_train)
    if int(state.step) == num_steps and (result := workdir_lib.finished_result(workdir, num_steps)):
        return result
    if jax.process_index() == 0:  # it is of a run that is being made longer
        (workdir / "result.json").unlink(missing_ok=True)

    centre, ten_crop = eval_steps(config, layout)
    with MetricsWriter(
        workdir,
        start_step=int(state.step),
        seconds=run["seconds"],
        evaluated=run["validation"] is not None,
        so_far=run["metrics"],
        num_steps=num_steps,
        batch_size=config.batch_size,
        examples_per_epoch=dataset.num_train,
        log_every_steps=config.log_every_steps,
    ) as writer:
        state = layout.place(state)
        state = _train(config, dataset, layout, state, run, centre, writer, checkpoints, stop)
        checkpoints.wait()
        ten_crops = None
        if not stop.requested:
            ten_crops = evaluate(ten_crop, state, dataset, eval_batch_size(config), layout, stop)
    if ten_crops is None:
        step = int(layout.fetch(state.step))
        print(f"stopped at step {step} of {num_steps}; the same command continues", file=sys.stderr)
        return None
    return {
        "step": num_steps,
        "epoch": num_steps * config.batch_size / dataset.num_train,
        "best_step": checkpoints.best(),
        "top1_error": run["validation"]["top1_error"],
        "top5_error": run["validation"]["top5_error"],
        "ten_crop_top1_error": ten_crops["top1_error"],
        "ten_crop_top5_error": ten_crops["top5_error"],
        "seconds": writer.seconds(),
        "skipped_records": dataset.num_damaged,
        "rewinds": run["rewinds"],
        "device": device(),
        "versions": versions(),
    }


def _train(
    config: ConfigDict,
    dataset: data.Dataset,
    layout: parallel.Pmap | parallel.Split,
    state: TrainState,
    run: dict[str, Any],
    evaluation: Any,
    writer: MetricsWriter,
    checkpoints: checkpoint.Checkpoints,
    stop: Stop,
) -> TrainState:
    """Take the steps that are left, evaluating and saving in between, and return the last state.

    `state` is placed and donated. `run`, the JSON of the checkpoint, is kept up to date: its
    `validation` holds the metrics of the last step, unless `stop` came before its evaluation.
    """
    first = int(layout.fetch(state.step))
    num_steps = total_steps(config, dataset.num_train)
    if first < num_steps:
        read = functools.partial(cached_rows, dataset, layout)
        cached = stop.unless_requested(read) if config.dataset.cache == "device" else {}
        if cached is None:
            return state
        compile_ = functools.partial(compiled_step, config, dataset, layout, state, cached)
        training: Any = stop.unless_requested(compile_)
        if training is None:
            return state
        taken = batches(config, dataset, layout, first, training.input_shardings[0][1], cached)
    writer.resume_clock(first)
    for step in range(first, num_steps + 1):
        if step > first:
            state, metrics = training(state, next(taken))
            writer.train(step, metrics, dataset.num_damaged)
            checkpoints.check()
            run["validation"] = None

        evaluated = False
        period_ends = evaluation_due(config, step, dataset.num_train)
        if run["validation"] is None and (period_ends or step == num_steps):
            writer.flush()
            validation = evaluate(evaluation, state, dataset, eval_batch_size(config), layout, stop)
            if validation is not None:
                run["validation"], evaluated = validation, True
                scale = float(layout.fetch(state.plateau.scale))
                rate = optim.learning_rate(config, step - 1, scale, dataset.num_train)
                history = {"learning_rate": float(rate)}
                # An end in between must not count when a run is made longer.
                if period_ends and config.schedule == "plateau":
                    state, plateau = _update_plateau(config, layout, state, validation)
                    history |= plateau
                writer.validation(step, validation | history)
            writer.resume_clock(step)

        stopping = stop.requested  # once: a stop that comes later than this has its save later
        due = stopping or step % config.checkpoint_every_steps == 0
        if evaluated or (due and step > first):
            writer.sync()  # what a checkpoint rests on is on the disk before it
            run["seconds"] = writer.seconds()
            checkpoints.save(step, layout.fetch(state), run)
            writer.resume_clock(step)
        if stopping:
            break
    return state


def _update_plateau(
    config: ConfigDict,
    layout: parallel.Pmap | parallel.Split,
    state: TrainState,
    validation: dict[str, float],
) -> tuple[TrainState, dict[str, float]]:
    """Return the state with the learning rate's scale after an evaluation, and what it rests on."""
    before = layout.fetch(state.plateau)
    plateau = optim.plateau_after(before, validation["top1_error"], **config.plateau)
    history = {
        "plateau_best": float(plateau.best_value),
        "plateau_count": int(plateau.plateau_count),
        "plateau_scale": float(plateau.scale),
    }
    return dataclasses.replace(state, plateau=layout.place(plateau)), history


def refuse_too_large(config: ConfigDict, layout: parallel.Pmap | parallel.Split) -> None:
    """Raise InputError where a step of `config` cannot fit into the memory of the devices."""
    columns = 1 if layout.column_axis is None else 2
    rows = config.batch_size // layout.shares // config.accumulate_steps
    needed, free = step_bytes(config, rows, columns), free_bytes()
    if needed > free:
        raise InputError(
            f"config.batch_size={config.batch_size}: {rows:,} images and the network of"
            f" config.model take {needed / 1e6:,.0f} MB at least on each device, where"
            f" {free / 1e6:,.0f} MB are free; take a smaller batch, narrower layers or more devices"
        )


def cached_rows(dataset: data.Dataset, layout: parallel.Pmap | parallel.Split) -> dict[str, Any]:
    """Return this process's rows of the training set, as `layout.shard` deals them out."""
    return layout.shard(device_cache.cached_rows(dataset, layout.shares))


def batches(
    config: ConfigDict,
    dataset: data.Dataset,
    layout: parallel.Pmap | parallel.Split,
    first: int,
    shardings: dict[str, Any],
    cached: dict[str, Any],
) -> Iterator[dict[str, jax.Array]]:
    """Yield the batches of the steps after `first`, on the devices, up to the run's last.

    `shardings`, of a batch's arrays, are those of the compiled step: `.input_shardings[0][1]`. What
    is in `cached`, `cached_rows` or nothing, goes there as well and is part of each batch;
    the dict is emptied.
    """
    read = data.train_records if cached else data.train_batches
    rows = read(
        dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    left = itertools.islice(rows, total_steps(config, dataset.num_train) - first)
    [once] = to_devices([cached], shardings)
    cached.clear()  # the host's copy
    for batch in to_devices(map(layout.shard, left), shardings):
        yield once | batch


def compiled_step(
    config: ConfigDict,
    dataset: data.Dataset,
    layout: parallel.Pmap | parallel.Split,
    state: TrainState,
    cached: dict[str, Any],
) -> Any:
    """Return the training step compiled, (state, batch) -> (state, metrics), with `state` donated.

    Before the first batch, so that it is not timed as training. `state` is placed; `cached` holds
    `cached_rows` where the training set lies on the devices, else it is empty.
    """
    parameters = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_state(config).params)
    )
    print(
        f"{dataset.num_train:,} training and {dataset.num_val:,} validation pictures of"
        f" {len(dataset.class_names)} classes; {parameters:,} parameters;"
        f" batches of {config.batch_size} on {parallel.devices()}",
        file=sys.stderr,
    )
    began = time.perf_counter()
    step = functools.partial(
        train_step,
        model=model_lib.from_config(config, layout.column_axis),
        config=config,
        num_train=dataset.num_train,
    )
    rows = config.batch_size // jax.process_count()
    blank = layout.shard(data.blank_batch(dataset, rows, by_record=bool(cached)))
    compiled = layout.spread(step, updates_state=True).lower(state, cached | blank).compile()
    print(f"compiled the training step in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    processes.meet()
    return compiled
