"""A training set that lies whole in the memory of the devices: batches gathered inside the step."""

from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import data, parallel
from alexnet_jax.errors import InputError
from alexnet_jax.host import memory

MOST = 0.8  # of the memory that is free: the step needs some, too


def refuse_too_large(dataset: data.Dataset, layout: parallel.Pmap | parallel.Split) -> None:
    """Raise InputError unless the training set fits into the free memory of the devices."""
    needed = _rows_of_a_share(dataset, layout) * dataset.image_size**2 * 3
    free = memory.free_bytes()
    if needed > MOST * free:
        raise InputError(
            f"config.dataset.cache='device': {dataset.num_train:,} pictures of"
            f" {dataset.image_size} px over {layout.shares} device(s) take {needed / 1e6:,.0f} MB"
            f" on each, where {free / 1e6:,.0f} MB are free; take cache='none'"
        )


def rows(dataset: data.Dataset, layout: parallel.Pmap | parallel.Split) -> dict[str, Any]:
    """Return this process's rows of the training set, as `layout.shard` deals them out.

    `cached_image` uint8 and `cached_label` int32: share i of n has the examples from
    i ceil(N / n) on, and zeros where there are no more. Damaged records are treated as
    `data.open_dataset` was told.
    """
    [batch] = data.eval_batches(
        dataset,
        batch_size=_rows_of_a_share(dataset, layout) * layout.shares,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        split="train",
    )
    return layout.shard({"cached_image": batch["image"], "cached_label": batch["label"]})


def lookup(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return `image` and `label` of this device's rows of a batch that may name `record` instead.

    Under the axis parallel.DATA. A device gives what it holds of all devices' rows, zeros for the
    others, and the sums are dealt out: bytes are moved once, and none is rounded.
    """
    if "record" not in batch:
        return batch
    image, label = batch["cached_image"], batch["cached_label"]
    records = jax.lax.all_gather(batch["record"], parallel.DATA, tiled=True)
    own = records - jax.lax.axis_index(parallel.DATA) * len(label)
    held = (own >= 0) & (own < len(label))

    def dealt_out(rows: jax.Array) -> jax.Array:
        mine = rows.at[own].get(mode="clip")
        mine = jnp.where(held.reshape(-1, *[1] * (rows.ndim - 1)), mine, 0)
        return jax.lax.psum_scatter(mine, parallel.DATA, tiled=True)

    return {"image": dealt_out(image), "label": dealt_out(label)}


def _rows_of_a_share(dataset: data.Dataset, layout: parallel.Pmap | parallel.Split) -> int:
    return -(-dataset.num_train // layout.shares)
