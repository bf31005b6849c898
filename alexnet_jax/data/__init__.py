"""Reading: batches of a prepared data set, each a function of (seed, step)."""

from alexnet_jax.data.batches import (
    Dataset,
    blank_batch,
    eval_batches,
    open_dataset,
    train_batches,
    train_records,
)
from alexnet_jax.data.decoding import Batch

__all__ = [
    "Batch",
    "Dataset",
    "blank_batch",
    "eval_batches",
    "open_dataset",
    "train_batches",
    "train_records",
]
