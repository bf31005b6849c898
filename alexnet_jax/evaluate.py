"""Errors over the whole validation set: every example once, whatever the batch and device count."""

import functools
import itertools
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import data, fused, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import is_prepared, prepare
from alexnet_jax.rundir import evaluating, restoring
from alexnet_jax.setting import Setting
from alexnet_jax.state import TrainState
from alexnet_jax.step import eval_step

EVALUATIONS = ("evaluation", "test crops")  # as progress names them, in the order of the steps


def eval_steps(config: ConfigDict, sharding: parallel.Pmap | parallel.Split) -> list[Any]:
    """Return `eval_step` over all devices for the centre crop, and for ten crops."""
    model = model_lib.from_config(config, sharding.column_axis, fused.from_config(config))
    step = functools.partial(eval_step, model=model, config=config)
    return [sharding.map(functools.partial(step, ten_crop=ten)) for ten in (False, True)]


def lowered_eval_steps(setting: Setting, state: TrainState) -> list[Any]:
    """Return `eval_steps` for a replicated `state`, not yet compiled."""
    rows = eval_batch_size(setting.config) // jax.process_count()
    blank = setting.sharding.shard(data.blank_batch(setting.dataset, rows, kind="eval"))
    return [step.lower(state, blank) for step in eval_steps(setting.config, setting.sharding)]


def eval_batch_size(config: ConfigDict) -> int:
    """Return how many examples are evaluated at a time: as many as are trained on at a time."""
    return max(1, config.batch_size // config.accumulate_steps)


def validation_metrics(
    step: Any, state: TrainState, setting: Setting, what: str = "evaluation"
) -> dict[str, float] | None:
    """Return the mean `loss`, `top1_error`, `top5_error` over the validation set, and the rate.

    Args:
      step: one of `lowered_eval_steps`, compiled.
      state: replicated.
      setting: its stop is polled between batches, and None is returned where it was requested.
      what: names the evaluation where progress is shown.
    """
    start = time.perf_counter()
    batches = data.eval_batches(
        setting.dataset,
        batch_size=eval_batch_size(setting.config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    shardings = step.input_shardings[0][1]
    on_devices = data.to_devices(map(setting.sharding.shard, batches), shardings)
    sums: dict[str, float] = {}
    under_way: dict[str, jax.Array] = {}
    with evaluating(what, setting.dataset.num_val) as report:
        for batch in itertools.chain(on_devices, [None]):
            if setting.stop.requested:
                return None
            # The host waits for the sums of a batch only after the devices have the next one.
            ready, under_way = under_way, {}
            if batch is not None:
                under_way = parallel.to_host(step(state, batch))
            for name, value in ready.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            report(int(sums.get("count", 0)))
    count = sums.pop("count")
    assert count == setting.dataset.num_val, f"evaluated {count} of {setting.dataset.num_val}"
    rate = count / (time.perf_counter() - start)
    return {name: value / count for name, value in sums.items()} | {"images_per_second": rate}


def evaluate_checkpoint(
    workdir: pathlib.Path, given: ConfigDict | None = None, test_crops: bool = True
) -> dict[str, Any]:
    """Return the validation errors of a run's best checkpoint, as in `result.json`.

    Args:
      workdir: the directory of a run, finished or not.
      given: a config; its `dataset` and `batch_size` are used in place of the run's. Without
        it nothing is downloaded or prepared: a run may come from someone else.
      test_crops: whether to evaluate the crops of `config.augment.test_crops` too.

    Returns:
      `step`, `top1_error`, `top5_error`, with `test_crops` `ten_crop_top1_error` and
      `ten_crop_top5_error`, `skipped_records` and `num_classes`.

    Raises:
      InputError: there is no checkpoint, or the data do not fit the network.
    """
    trained, state, record = restoring.load(workdir)
    if given is None:
        given = trained
        if not is_prepared(given.dataset):
            raise InputError(
                f"{workdir} was trained on {given.dataset.name!r}, which is not prepared in"
                f" {given.dataset.data_dir}; give --config=... for what to evaluate it on"
            )
    config_lib.refuse_changes(
        trained, given, workdir, only=("model.", "augment.", "dataset.image_size", "dtype")
    )
    dataset = data.open_dataset(prepare(given.dataset), given.dataset.on_error)
    if list(dataset.class_names) != record.class_names:
        raise InputError(
            f"{workdir} was trained on the classes {', '.join(record.class_names[:5])}, ...; those"
            f" of {given.dataset.name!r} are {', '.join(dataset.class_names[:5])}, ..."
        )
    # Errors depend neither on the batch nor on how the run was spread: any devices will do.
    config = trained.copy_and_resolve_references()
    config.batch_size, config.accumulate_steps = parallel.round_up(eval_batch_size(given)), 1
    setting = Setting(config, dataset, parallel.Pmap())
    dataset.decoders().start()  # they get ready while the programs are compiled
    replicated = setting.sharding.replicate(state)
    result: dict[str, Any] = {"step": int(state.step)}
    number = 2 if test_crops else 1
    lowered = lowered_eval_steps(setting, replicated)[:number]
    steps = parallel.compiled(unsearched=lowered)
    for prefix, what, step in zip(("", "ten_crop_"), EVALUATIONS, steps, strict=False):
        metrics = validation_metrics(step, replicated, setting, what)
        assert metrics is not None  # no stop can be requested here
        result |= {f"{prefix}{name}": metrics[name] for name in ("top1_error", "top5_error")}
    counts = {"skipped_records": dataset.num_damaged, "num_classes": len(dataset.class_names)}
    return result | counts
