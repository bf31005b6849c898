"""The memory of the devices: how much is free, and what a training step takes at the least."""

import os
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import layers
from alexnet_jax.errors import InputError


def free_bytes() -> float:
    """Return the free memory of one device; of CPU devices, its part of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():  # what the page cache holds is free as well
        free = int(meminfo.read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free / jax.local_device_count()


def refuse_too_large(config: ConfigDict, rows: int, columns: int) -> None:
    """Raise InputError where a step on `rows` pictures a device cannot fit into its memory.

    What is counted is there at one moment of any step: parameters, gradient and velocity in
    float32, which `columns` devices share, and of every picture the stored square, the crop and
    what each layer puts out, kept for the backward pass. More may be needed.
    """
    found = layers.layers(config.model, config.augment.crop)
    parameters = 3 * 4 * sum(layer.weights for layer in found) // columns
    outputs = sum(layer.outputs for layer in found) * jnp.dtype(config.dtype).itemsize // columns
    picture = 3 * config.dataset.image_size**2 + 3 * 4 * config.augment.crop**2 + outputs
    needed, free = parameters + rows * picture, free_bytes()
    if needed > free:
        raise InputError(
            f"config.batch_size={config.batch_size}: {rows:,} pictures and the network of"
            f" config.model take {needed / 1e6:,.0f} MB at least on each device, where"
            f" {free / 1e6:,.0f} MB are free; take a smaller batch, narrower layers or more devices"
        )
