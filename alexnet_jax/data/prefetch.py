"""Batches on the devices one step before they are needed."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np


def to_devices(
    batches: Iterable[dict[str, np.ndarray | jax.Array]],
    shardings: dict[str, jax.sharding.Sharding],
) -> Iterator[dict[str, jax.Array]]:
    """Yields each batch as arrays on the devices, the copy of the next one already under way.

    So while the devices are at a step the host sends the batch of the next. A CPU uses the host's
    memory in place.

    Args:
      batches: this process's rows, shaped as the compiled step takes them; arrays that are on the
        devices already stay as they are.
      shardings: of each array, over the devices of all processes.
    """
    ahead = None
    for batch in batches:
        placed = {
            name: rows
            if isinstance(rows, jax.Array)
            else jax.make_array_from_process_local_data(shardings[name], rows)
            for name, rows in batch.items()
        }
        del batch  # its memory is free for another as soon as the devices have it
        if ahead is not None:
            yield ahead
        ahead = placed
    if ahead is not None:
        yield ahead
