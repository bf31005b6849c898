"""Training: one step, and the loop around it."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax import augment, checkpoint, data, optim, parallel, prefetch
from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.evaluate import errors, eval_steps, evaluate
from alexnet_jax.metrics import MetricsWriter
from alexnet_jax.prepare import prepare
from alexnet_jax.signals import StopRequest
from alexnet_jax.state import (
    TrainState,
    abstract_state,
    check_classes,
    initial_state,
    step_key,
)

# Beside `step`, what result.json holds.
RESULT = (
    "epoch",
    "best_step",
    "top1_error",
    "top5_error",
    "ten_crop_top1_error",
    "ten_crop_top5_error",
    "seconds",
)


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, model: model_lib.AlexNet, config: ConfigDict
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the metrics of the batch before it.

    The function of one device, under the axis parallel.AXIS. `batch` holds this device's rows:
    `image` (rows, size, size, 3) uint8 and `label` (rows,) int32. Every device has an equal share,
    so that means of means are means over the global batch.
    """
    ids = parallel.example_ids(len(batch["label"]))
    augment_key, dropout_key = jax.random.split(step_key(config, state.step))
    images = augment.random_crops(
        augment_key, ids, batch["image"], state.mean_image, state.colour, **config.augment
    )

    def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        rngs = {"dropout": dropout_key}
        logits: Any = model.apply(
            {"params": params}, images, train=True, example_ids=ids, rngs=rngs
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), logits

    (loss, logits), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    metrics = {"loss": loss, **jax.tree.map(jnp.mean, errors(logits, batch["label"]))}
    gradient, metrics = jax.lax.pmean((gradient, metrics), parallel.AXIS)

    learning_rate = config.learning_rate * state.plateau.scale
    optimizer = optim.momentum_sgd(
        learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
        "learning_rate": learning_rate,
        "gradient_norm": optax.tree.norm(gradient),
        "parameter_norm": optax.tree.norm(state.params),
    }
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state
    ), metrics


def update_plateau(state: TrainState, top1_error: jax.Array, *, config: ConfigDict) -> TrainState:
    """Return the state with the learning rate's scale as it is after an evaluation's error."""
    _, plateau = optim.plateau(config.plateau).update(state.params, state.plateau, value=top1_error)
    return dataclasses.replace(state, plateau=plateau)


def train_and_evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Train the network of `config`, or continue the run in `workdir`, and return its result.

    Args:
      config: a valid config (config.validate).
      workdir: the run directory; made if it is not there.

    Returns:
      What `result.json` holds; None where a signal asked to stop before the end. The same call
      then continues at the next step.

    Raises:
      InputError: the data, the devices or the run in `workdir` do not fit the config.
    """
    parallel.check_batch_size(config.batch_size)
    _check_workdir(workdir, config)
    dataset = data.open_dataset(prepare(config.dataset), config.dataset.on_error)
    check_classes(config, dataset)
    workdir.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop, checkpoint.Checkpoints(workdir) as checkpoints:
        state, run = _begin(config, workdir, dataset, checkpoints)
        config_lib.save(config, workdir / "config.json")
        num_steps = total_steps(config, dataset.num_train)
        if int(state.step) == num_steps and (result := _finished(workdir, num_steps)):
            return result
        (workdir / "result.json").unlink(missing_ok=True)  # of a run that is being made longer

        began = time.perf_counter() - run["seconds"]
        state = parallel.replicate(state)
        state = _train(config, workdir, dataset, checkpoints, stop, state, run, began)
        ten_crops = None
        if not stop.requested:
            _, ten_crop_evaluation = eval_steps(config)
            ten_crops = evaluate(ten_crop_evaluation, state, dataset, config.batch_size, stop)
        if ten_crops is None:
            step = int(state.step[0])
            print(
                f"stopped at step {step} of {num_steps}; the same command continues",
                file=sys.stderr,
            )
            return None
        result = {
            "step": num_steps,
            "epoch": num_steps * config.batch_size / dataset.num_train,
            "best_step": checkpoints.best(),
            "top1_error": run["validation"]["top1_error"],
            "top5_error": run["validation"]["top5_error"],
            "ten_crop_top1_error": ten_crops["top1_error"],
            "ten_crop_top5_error": ten_crops["top5_error"],
            "seconds": time.perf_counter() - began,
            "skipped_records": dataset.num_damaged,
        }
    config_lib.write_json(result, workdir / "result.json")
    return result


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    checkpoints: checkpoint.Checkpoints,
    stop: StopRequest,
    state: TrainState,
    run: dict[str, Any],
    began: float,
) -> TrainState:
    """Take the steps that are left, evaluating and saving in between, and return the last state.

    `state` is replicated and donated. `run`, the JSON of the checkpoint, is kept up to date: its
    `validation` holds the metrics of the last step, unless `stop` came before its evaluation.
    """
    first, num_steps = int(state.step[0]), total_steps(config, dataset.num_train)
    evaluation, _ = eval_steps(config)
    plateau_of = functools.partial(update_plateau, config=config)
    lower_rate = parallel.data_parallel(plateau_of, donate_state=True)
    training: Any = _compiled_step(config, dataset, state) if first < num_steps else None
    batches: Iterator[Any] = data.train_batches(
        dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if training is not None:
        shares = map(parallel.shard, itertools.islice(batches, num_steps - first))
        batches = prefetch.to_devices(shares, training.input_shardings[0][1])
    with MetricsWriter(
        workdir,
        start_step=first,
        evaluated=run["validation"] is not None,
        num_steps=num_steps,
        batch_size=config.batch_size,
        examples_per_epoch=dataset.num_train,
        log_every_steps=config.log_every_steps,
    ) as writer:
        for step in range(first, num_steps + 1):
            if step > first:
                state, metrics = training(state, next(batches))
                writer.train(step, metrics, dataset.num_damaged)
                run["validation"] = None

            evaluated = False
            period_ends = evaluation_due(config, step, dataset.num_train)
            if run["validation"] is None and (period_ends or step == num_steps):
                writer.flush()
                validation = evaluate(evaluation, state, dataset, config.batch_size, stop)
                if validation is not None:
                    run["validation"], evaluated = validation, True
                    writer.validation(step, validation | _learning_rate(config, state))
                    if period_ends:  # an end in between must not count when a run is made longer
                        error = jnp.float32(validation["top1_error"])
                        state = lower_rate(state, parallel.replicate(error))
                writer.resume_clock(step)

            due = stop.requested or step % config.checkpoint_every_steps == 0
            if evaluated or (due and step > first):
                writer.flush()
                run["seconds"] = time.perf_counter() - began
                checkpoints.save(step, parallel.unreplicate(state), run)
                writer.resume_clock(step)
            if stop.requested:
                break
    return state


def _begin(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    checkpoints: checkpoint.Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state to go on from, on one device, and the JSON that goes into checkpoints."""
    run: dict[str, Any] = {
        "class_names": list(dataset.class_names),
        "data": dataset.identity,
        "seconds": 0.0,
        "validation": None,  # the metrics of the checkpoint's step, where it was evaluated
    }
    latest = checkpoints.latest()
    if latest is None:
        return initial_state(config, dataset), run
    state, saved = checkpoints.restore(latest, abstract_state(config))
    if [saved["class_names"], saved["data"]] != [run["class_names"], run["data"]]:
        raise InputError(
            f"{workdir} was trained on other pictures than {config.dataset.name!r} holds now"
            f" (data set {saved['data']}, now {run['data']}); take another --workdir"
        )
    num_steps = total_steps(config, dataset.num_train)
    if latest > num_steps:
        raise InputError(
            f"{workdir} is at step {latest} already, beyond the {num_steps} of this command;"
            " raise config.num_steps or config.num_epochs, or take another --workdir"
        )
    return state, saved


def _check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise InputError unless a run of `config` can begin or go on in `workdir`."""
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir} cannot be made or written: see {existing}")
    if (workdir / "config.json").exists():
        config_lib.refuse_changes(config_lib.load(workdir / "config.json"), config, workdir)
    elif any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        raise InputError(f"{workdir} has checkpoints but no config.json; take another --workdir")


def _finished(workdir: pathlib.Path, num_steps: int) -> dict[str, Any] | None:
    """Return the result of a run that ended at `num_steps`, if it is there and whole."""
    try:
        result = json.loads((workdir / "result.json").read_text())
        whole = result["step"] == num_steps and all(result[n] is not None for n in RESULT)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole else None


def _compiled_step(config: ConfigDict, dataset: data.Dataset, state: TrainState) -> Any:
    """Compile the training step before the first batch, so that it is not timed as training."""
    parameters = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(state.params))
    print(
        f"{dataset.num_train:,} training and {dataset.num_val:,} validation pictures of"
        f" {len(dataset.class_names)} classes; {parameters:,} parameters;"
        f" batches of {config.batch_size} on {parallel.devices()}",
        file=sys.stderr,
    )
    began = time.perf_counter()
    step = functools.partial(train_step, model=model_lib.from_config(config), config=config)
    blank = data.blank_batch(dataset, config.batch_size // jax.process_count())
    training: Any = parallel.data_parallel(step, donate_state=True)
    compiled = training.lower(state, parallel.shard(blank)).compile()
    print(f"compiled the training step in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return compiled


def _learning_rate(config: ConfigDict, state: TrainState) -> dict[str, float]:
    scale = parallel.unreplicate(state.plateau.scale)
    return {"learning_rate": float(config.learning_rate * scale)}


def evaluation_due(config: ConfigDict, step: int, num_train: int) -> bool:
    """Return whether `step` completes another `config.eval_every_epochs` epochs."""
    period = num_train * config.eval_every_epochs
    seen = step * config.batch_size
    return step > 0 and seen // period > (seen - config.batch_size) // period


def total_steps(config: ConfigDict, num_train: int) -> int:
    """Return `config.num_steps`, or the steps that see `config.num_epochs` epochs of examples."""
    return config.num_steps or math.ceil(config.num_epochs * num_train / config.batch_size)
