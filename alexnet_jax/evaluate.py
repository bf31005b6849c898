"""Errors over the whole validation set: every example once, whatever the batch and device count."""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import data, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.errors import InputError
from alexnet_jax.host import Stop, StopRequest
from alexnet_jax.prepare import is_prepared, prepare
from alexnet_jax.rundir import checkpoint
from alexnet_jax.state import TrainState
from alexnet_jax.step import eval_step


def eval_steps(
    config: ConfigDict, layout: parallel.Pmap | parallel.Split
) -> tuple[Callable, Callable]:
    """Return `eval_step` over all devices for the centre crop, and for ten crops."""
    model = model_lib.from_config(config, layout.column_axis)
    step = functools.partial(eval_step, model=model, config=config)
    centre, ten = (functools.partial(step, ten_crop=ten_crop) for ten_crop in (False, True))
    return layout.spread(centre), layout.spread(ten)


def eval_batch_size(config: ConfigDict) -> int:
    """Return how many examples are evaluated at a time: as many as are trained on at a time."""
    return config.batch_size // config.accumulate_steps


def evaluate(
    step: Callable[[TrainState, Any], dict[str, jax.Array]],
    state: TrainState,
    dataset: data.Dataset,
    batch_size: int,
    layout: parallel.Pmap | parallel.Split,
    stop: Stop,
) -> dict[str, float] | None:
    """Return the mean `loss`, `top1_error`, `top5_error` over the validation set, and the rate.

    Args:
      step: one of `eval_steps`.
      state: placed.
      dataset: whose 'val' split is read.
      batch_size: over all devices.
      layout: of step and state.
      stop: polled between batches; None is returned where it was requested before the end.
    """
    start = time.perf_counter()
    sums: dict[str, float] = {}
    batches = data.eval_batches(
        dataset,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def judged(
        batch: data.Batch | None, before: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, float]]:
        """Send `batch` to the devices; return its sums on their way, and those of the one before.

        So the host waits for a batch only after the devices have the next one.
        """
        sent = {} if batch is None else parallel.to_host(step(state, layout.shard(batch)))
        return sent, {name: value.item() for name, value in before.items()}

    under_way: dict[str, jax.Array] = {}
    for batch in itertools.chain(batches, [None]):
        # The first one compiles, which a stop need not wait for.
        found = stop.unless_requested(functools.partial(judged, batch, under_way))
        if found is None:
            return None
        under_way, of_last = found
        for name, value in of_last.items():
            sums[name] = sums.get(name, 0.0) + value
    count = sums.pop("count")
    assert count == dataset.num_val, f"evaluated {count} of {dataset.num_val} examples"
    rate = count / (time.perf_counter() - start)
    return {name: value / count for name, value in sums.items()} | {"images_per_second": rate}


def evaluate_checkpoint(
    workdir: pathlib.Path, config: ConfigDict | None = None
) -> dict[str, Any] | None:
    """Return the validation errors of a run's best checkpoint, as in `result.json`.

    Args:
      workdir: the directory of a run, finished or not.
      config: where given, its `dataset` and `batch_size` are used in place of the run's. Without
        it nothing is downloaded or prepared: a run may be a stranger's.

    Returns:
      `step`, `top1_error`, `top5_error`, `ten_crop_top1_error`, `ten_crop_top5_error` and
      `skipped_records`; None where a signal asked to stop.

    Raises:
      InputError: there is no checkpoint, or the data do not fit the network.
    """
    trained, state, run = checkpoint.load(workdir)
    if config is None:
        config = trained
        if not is_prepared(config.dataset):
            raise InputError(
                f"{workdir} was trained on {config.dataset.name!r}, which is not prepared in"
                f" {config.dataset.data_dir}; give --config=... for what to evaluate it on"
            )
    config_lib.refuse_changes(
        trained, config, workdir, only=("model.", "augment.", "dataset.image_size", "dtype")
    )
    dataset = data.open_dataset(prepare(config.dataset), config.dataset.on_error)
    if list(dataset.class_names) != run["class_names"]:
        raise InputError(
            f"{workdir} was trained on the classes {', '.join(run['class_names'][:5])}, ...; those"
            f" of {config.dataset.name!r} are {', '.join(dataset.class_names[:5])}, ..."
        )
    # Errors depend neither on the batch nor on how the run was spread: any devices will do.
    batch_size, layout = parallel.round_up(eval_batch_size(config)), parallel.Pmap()
    placed = layout.place(state)
    result: dict[str, Any] = {"step": int(state.step)}
    with StopRequest() as stop:
        for prefix, step in zip(("", "ten_crop_"), eval_steps(trained, layout), strict=True):
            metrics = evaluate(step, placed, dataset, batch_size, layout, stop)
            if metrics is None:
                return None
            result |= {f"{prefix}{name}": metrics[name] for name in ("top1_error", "top5_error")}
    return result | {"skipped_records": dataset.num_damaged}
