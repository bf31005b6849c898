"""The compiled programs of a run, and the batches on the devices that its training step takes."""

import functools
import itertools
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import data, fused, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.evaluate import lowered_eval_steps
from alexnet_jax.host import processes
from alexnet_jax.optim import total_steps
from alexnet_jax.setting import Setting
from alexnet_jax.state import TrainState, abstract_state, seed_words
from alexnet_jax.step import train_step


class Programs(NamedTuple):
    """What is compiled once for a run, each for replicated states.

    Attributes:
      train: the training step, (state, batch) -> (state, metrics), which donates the state.
      evaluate, ten_crop: (state, batch) -> sums of metrics.
      cached: a part of each batch that lies on the devices: see `cached_rows`.
    """

    train: Any
    evaluate: Any
    ten_crop: Any
    cached: dict[str, jax.Array]


def compile_programs(setting: Setting, state: TrainState) -> Programs:
    """Return the programs of a run from `state`, compiled before the first of them is needed.

    So no step waits for a compilation, and none is timed as training.
    """
    config, dataset = setting.config, setting.dataset
    leaves = jax.tree.leaves(abstract_state(config).params)
    print(
        f"{dataset.num_train:,} training and {dataset.num_val:,} validation images of"
        f" {len(dataset.class_names)} classes; {sum(math.prod(x.shape) for x in leaves):,}"
        f" parameters; batches of {config.batch_size} on {parallel.devices()}",
        file=sys.stderr,
    )
    began = time.perf_counter()
    dataset.decoders().start()  # they get ready while the programs are compiled
    replicated, cached = setting.sharding.replicate(state), cached_rows(setting)
    step = lowered_step(setting, replicated, cached)
    evaluations = lowered_eval_steps(setting, replicated)
    train, centre, ten_crop = parallel.compiled(step, unsearched=evaluations)
    print(f"compiled in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    processes.meet()
    [on_devices] = data.to_devices([cached], train.input_shardings[0][1])
    return Programs(train, centre, ten_crop, on_devices)


def lowered_step(setting: Setting, state: TrainState, cached: dict[str, Any]) -> Any:
    """Return the training step over all devices, not yet compiled.

    `state` is replicated, `cached` what `cached_rows` returned.
    """
    config, dataset, sharding = setting.config, setting.dataset, setting.sharding
    step = functools.partial(
        train_step,
        model=model_lib.from_config(config, sharding.column_axis, fused.from_config(config)),
        config=config,
        num_train=dataset.num_train,
    )
    rows = config.batch_size // jax.process_count()
    blank = data.blank_batch(dataset, rows, kind="records" if _on_device(config) else "train")
    batch = cached | sharding.shard(blank)
    return sharding.map(step, updates_state=True).lower(state, batch)


def cached_rows(setting: Setting) -> dict[str, Any]:
    """Return this process's rows of what every batch has.

    That is the seed, as an input, so that the compilation cache has one program for all seeds; and
    with `dataset.cache='device'` the training set.
    """
    config, shares = setting.config, setting.sharding.shares
    rows = {"seed_words": np.tile(seed_words(config), shares // jax.process_count())}
    if _on_device(config):
        rows |= data.device_cache.cached_rows(setting.dataset, shares)
    return setting.sharding.shard(rows)


def _on_device(config: ConfigDict) -> bool:
    return config.dataset.cache == "device"


def train_batches(
    setting: Setting, step: Any, cached: dict[str, Any], first: int
) -> Iterator[dict[str, jax.Array]]:
    """Yield the batches of the steps after `first`, on the devices, up to the run's last.

    `step` is compiled, and `cached` is a part of each batch.
    """
    config, dataset = setting.config, setting.dataset
    read = data.train_records if _on_device(config) else data.train_batches
    rows = read(
        dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    left = itertools.islice(rows, total_steps(config, dataset.num_train) - first)
    shardings = step.input_shardings[0][1]
    [once] = data.to_devices([cached], shardings)
    for batch in data.to_devices(map(setting.sharding.shard, left), shardings):
        yield once | batch
