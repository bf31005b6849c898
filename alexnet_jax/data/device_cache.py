"""A training set in the memory of the devices, where the step looks up its batches."""

import jax
import numpy as np

from alexnet_jax.data.batches import eval_batches
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import InputError
from alexnet_jax.host import free_bytes

MOST = 0.8  # of the free memory: the step needs some, too


def refuse_too_large(dataset: Dataset, shares: int) -> None:
    """Raise InputError unless a share of the training set fits into a device's free memory."""
    needed = _rows_per_share(dataset, shares) * dataset.image_size**2 * 3
    free = free_bytes()
    if needed > MOST * free:
        raise InputError(
            f"config.dataset.cache='device': {dataset.num_train:,} images of"
            f" {dataset.image_size} px over {shares} device(s) take {needed / 1e6:,.0f} MB"
            f" on each, where {free / 1e6:,.0f} MB are free; set cache='none'"
        )


def cached_rows(dataset: Dataset, shares: int) -> dict[str, np.ndarray]:
    """Return this process's rows of the training set, for `step.lookup`.

    `cached_image` uint8 and `cached_label` int32: share i of n starts at example i ceil(N / n);
    zeros pad the last shares. Damaged records are handled as `on_error` of `open_dataset` says.
    """
    [batch] = eval_batches(
        dataset,
        batch_size=_rows_per_share(dataset, shares) * shares,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        split="train",
    )
    return {"cached_image": batch["image"], "cached_label": batch["label"]}


def _rows_per_share(dataset: Dataset, shares: int) -> int:
    return -(-dataset.num_train // shares)
