"""Batches on the devices, each copied while the devices compute the step before."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np


def to_devices(
    batches: Iterable[dict[str, np.ndarray | jax.Array]],
    shardings: dict[str, jax.sharding.Sharding],
) -> Iterator[dict[str, jax.Array]]:
    """Yield each batch as arrays on the devices, while the next one is already being copied.

    So the host sends the next batch while the devices compute a step. A CPU device uses the memory
    of the batch in place.

    Args:
      batches: this process's rows, shaped as the compiled step takes them; arrays that are already
        on the devices stay as they are.
      shardings: of each array, over the devices of all processes.
    """
    ahead = None
    for batch in batches:
        on_devices = {
            name: rows
            if isinstance(rows, jax.Array)
            else jax.make_array_from_process_local_data(shardings[name], rows)
            for name, rows in batch.items()
        }
        del batch  # its memory can be recycled as soon as the devices have it
        if ahead is not None:
            yield ahead
        ahead = on_devices
    if ahead is not None:
        yield ahead
