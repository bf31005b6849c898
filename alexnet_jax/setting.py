"""The resources of a run: data, devices, checkpoints and the request to stop, opened once."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import fused, parallel
from alexnet_jax.config import with_num_classes
from alexnet_jax.data import Dataset, device_cache, open_dataset
from alexnet_jax.errors import InputError
from alexnet_jax.host import Stop, StopRequest, free_bytes
from alexnet_jax.layers import step_bytes
from alexnet_jax.prepare import check_classes, prepare
from alexnet_jax.rundir import Checkpoints


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change while a network is trained or evaluated.

    Attributes:
      config: valid; with the number of classes, also where the recipe leaves it to the data set.
      dataset: prepared and open.
      sharding: over the devices.
      stop: polled between batches; by default one that nobody requests.
      checkpoints: of the run; None where nothing is saved.
      callback: called with each line of metrics.jsonl, as a dict.
    """

    config: ConfigDict
    dataset: Dataset
    sharding: parallel.Pmap | parallel.Split
    stop: Stop = dataclasses.field(default_factory=StopRequest)
    checkpoints: Checkpoints | None = None
    callback: Callable[[dict[str, Any]], object] | None = None


def open_setting(config: ConfigDict) -> Setting:
    """Return data and devices for training `config`, the data prepared where they are not.

    Raises:
      InputError: the config does not fit the devices or their memory, what config.fused_pooling
        needs is missing, or the data do not exist or have another number of classes.
    """
    if config.fused_pooling:
        fused.refuse_missing()
    sharding = parallel.sharding(config)
    _refuse_too_large(config, sharding)
    num_classes = config.model.num_classes
    directory = prepare(config.dataset, num_classes=num_classes)
    dataset = open_dataset(directory, config.dataset.on_error)
    check_classes(num_classes, dataset.class_names, config.dataset.name)
    config = with_num_classes(config, len(dataset.class_names))
    if config.dataset.cache == "device":
        device_cache.refuse_too_large(dataset, sharding.shares)
    return Setting(config, dataset, sharding)


def _refuse_too_large(config: ConfigDict, sharding: parallel.Pmap | parallel.Split) -> None:
    columns = 1 if sharding.column_axis is None else 2
    rows = config.batch_size // sharding.shares // config.accumulate_steps
    needed, free = step_bytes(config, rows, columns), free_bytes()
    if needed > free:
        raise InputError(
            f"config.batch_size={config.batch_size}: {rows:,} images and the network of"
            f" config.model take {needed / 1e6:,.0f} MB at least on each device, where"
            f" {free / 1e6:,.0f} MB are free; take a smaller batch, narrower layers or more devices"
        )
