"""Reading: batches of a prepared data set, each a function of (seed, step)."""

from alexnet_jax.data import device_cache, messages
from alexnet_jax.data.batches import blank_batch, eval_batches, train_batches, train_records
from alexnet_jax.data.dataset import (
    FORMAT,
    RECORD_OPTIONS,
    Dataset,
    identity,
    open_dataset,
    same_set,
    statistics_sha256,
)
from alexnet_jax.data.decoding import Batch
from alexnet_jax.data.to_devices import to_devices

__all__ = [
    "FORMAT",
    "RECORD_OPTIONS",
    "Batch",
    "Dataset",
    "blank_batch",
    "device_cache",
    "eval_batches",
    "identity",
    "messages",
    "open_dataset",
    "same_set",
    "statistics_sha256",
    "to_devices",
    "train_batches",
    "train_records",
]
