"""What it costs to bring a batch to the device, and how much of that a computation hides.

Milliseconds of a batch of uint8 images of 256 px, from

numpy        memory of NumPy;
shared       memory that worker processes share (the batches of `num_workers`);
registered   the same after cuMemHostRegister, which pins it where it is (NVIDIA only);
pinned_host  JAX's own pinned memory; `to_pinned` is the copy into it.

`computing` is a chain of matrix products of about as long as the copy from `shared` or longer,
`both` the same with data.to_devices bringing the next batch; `hidden` is the share of the copy that
the computation hides: (computing + copy - both) / copy.
"""

import ctypes
import functools
import itertools
import mmap
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 15


def measured(batches: list[int]) -> dict[str, Any]:
    """Return what is measured for batches of so many images on JAX's first device."""
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "copies": {str(rows): _of_batch(rows, device) for rows in batches},
    }


def _of_batch(rows: int, device: Any) -> dict[str, float]:
    import jax
    import numpy as np

    from alexnet_jax.data import to_devices

    shape = (rows, 256, 256, 3)
    ours = np.ones(shape, np.uint8)
    descriptor = os.memfd_create("benchmark")
    os.ftruncate(descriptor, ours.nbytes)
    shared = np.frombuffer(mmap.mmap(descriptor, ours.nbytes), np.uint8).reshape(shape)
    shared[:] = 1
    here = jax.sharding.SingleDeviceSharding(device)
    # From a CPU's memory to a CPU's memory nothing is copied, as in training there.
    found = {"megabytes": ours.nbytes / 1e6}
    for name, array in (("numpy", ours), ("shared", shared)):
        found[name] = _milliseconds(functools.partial(jax.device_put, array, here))
    if device.platform != "cpu":
        pinned = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
        found["to_pinned"] = _milliseconds(lambda: jax.device_put(shared, pinned))
        there = jax.block_until_ready(jax.device_put(shared, pinned))
        found["pinned_host"] = _milliseconds(lambda: jax.device_put(there, here))

    compute = _computation(device, found["shared"])
    found["computing"] = _milliseconds(compute)
    batches = to_devices(itertools.repeat({"image": shared}), {"image": here})
    found["both"] = _milliseconds(lambda: (compute(), next(batches)))
    if device.platform != "cpu":
        copy = found["shared"]
        found["hidden"] = (found["computing"] + copy - found["both"]) / copy
    if device.platform == "gpu" and _register(shared):  # last: it stays registered
        found["registered"] = _milliseconds(lambda: jax.device_put(shared, here))
        found["both_registered"] = _milliseconds(lambda: (compute(), next(batches)))
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _milliseconds(work: Callable[[], Any]) -> float:
    """Return the median time of `work` until its result is there."""
    import jax

    times = []
    for _ in range(ROUNDS + 2):  # two warm up
        begun = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times[2:])


def _computation(device: Any, at_least: float) -> Callable[[], Any]:
    """Return a computation on the device of at least so many milliseconds, and of 5."""
    import jax
    import jax.numpy as jnp

    side = 256 if device.platform == "cpu" else 4096
    matrix = jax.device_put(jnp.full((side, side), 1 / side, jnp.bfloat16), device)
    chain = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x))
    number = 1
    while _milliseconds(functools.partial(chain, matrix, number)) < max(at_least, 5):
        number *= 2
    return functools.partial(chain, matrix, number)


def _register(array: Any) -> bool:
    """Pin the memory of an array where it is; return whether the driver could."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    context = ctypes.c_void_p()
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cuda.cuCtxSetCurrent(context)
    address = ctypes.c_void_p(array.ctypes.data)
    return cuda.cuMemHostRegister_v2(address, ctypes.c_size_t(array.nbytes), 0) == 0
