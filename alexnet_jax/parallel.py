"""Devices: one function over all of them, state on each, batches dealt out.

The functions given to `data_parallel` see one device's share of the batch and the axis name `AXIS`;
they do not depend on how many devices there are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import InputError

AXIS = "batch"


def check_batch_size(batch_size: int) -> None:
    """Raise InputError unless all devices of all processes get equal shares of `batch_size`."""
    devices = jax.device_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        options = [str(n) for n in (below, below + devices) if n]
        raise InputError(
            f"config.batch_size={batch_size} cannot be divided over {devices} devices;"
            f" take {' or '.join(options)}"
        )


def round_up(batch_size: int) -> int:
    """Return the next batch size that all devices get equal shares of."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def devices() -> str:
    """Return number and kind of the devices for people."""
    return f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"


def data_parallel(function: Callable, *, donate_state: bool = False) -> Callable:
    """Return `function(state, batch)` over all devices, the leading axis of either argument."""
    return jax.pmap(function, axis_name=AXIS, donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
    """Return `tree` with every leaf copied to each local device, on a new leading axis."""
    devices = np.arange(jax.local_device_count())
    return jax.pmap(lambda _, tree: tree, in_axes=(0, None))(devices, tree)


def unreplicate(tree: Any) -> Any:
    """Return the first device's copy of a replicated `tree`."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return this process's rows of a batch as (local devices, rows of one device, ...)."""
    return {
        name: rows.reshape(jax.local_device_count(), -1, *rows.shape[1:])
        for name, rows in batch.items()
    }


def example_ids(rows: int) -> jax.Array:
    """Return the positions in the global batch of the `rows` that this device holds."""
    return jax.lax.axis_index(AXIS) * rows + jnp.arange(rows)
