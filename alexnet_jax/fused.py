"""Bias, ReLU, local response normalization and max pooling as one operation on an NVIDIA GPU.

XLA computes them in several passes over the largest feature maps there are, which on a GPU take a
third of a training step. Here one kernel reads the convolution's output once and writes the pooled
one, and one kernel computes both gradients. The kernels (fused_kernels.py) are written in NVIDIA
Warp, which compiles them when a program is traced: `pip install warp-lang` is all they need.
"""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.errors import InputError

WARP = "warp-lang>=1.19,<2"  # the extra `fused`; before 1.19 its kernels run on GPUs only
CHANNELS = 8  # of a thread
# A thread walks down whole columns if there are as many threads, else down a part of each: some
# five times as many as an H200 runs at a time.
ENOUGH_THREADS = 2**18


def from_config(config: ConfigDict) -> Callable[..., jax.Array] | None:
    """Return `relu_pool` where `config` asks for it and it can run, else None.

    A network trained with it is the same without, and so can be used on any machine.
    """
    return relu_pool if config.fused_pooling and _on_nvidia_gpu() and _has_warp() else None


def refuse_missing() -> None:
    """Raise InputError unless the default devices are NVIDIA GPUs and Warp is installed."""
    without = "or give --config.fused_pooling=False"
    if not _on_nvidia_gpu():
        device = jax.devices()[0].platform
        raise InputError(
            f"config.fused_pooling=True needs an NVIDIA GPU, but JAX runs on {device}; use one,"
            f" {without}"
        )
    if not _has_warp():
        raise InputError(
            f"config.fused_pooling=True needs NVIDIA Warp: pip install '{WARP}', {without}"
        )


def _on_nvidia_gpu() -> bool:
    device = jax.devices()[0]
    return device.platform == "gpu" and "cuda" in device.client.platform_version


def _has_warp() -> bool:
    try:
        version = metadata.version("warp-lang")
    except metadata.PackageNotFoundError:
        return False
    return (1, 19) <= tuple(int(number) for number in version.split(".")[:2]) < (2,)


def relu_pool(
    x: jax.Array, bias: jax.Array, *, lrn: tuple[float, float] | None, columns: int = 1
) -> jax.Array:
    """Return max_pool(local_response_norm(relu(x + bias))), or without the normalization.

    (N, H, W, C) -> (N, (H - 3) // 2 + 1, (W - 3) // 2 + 1, C) in x's dtype, bfloat16 or float32;
    H and W are at least 3, C is a multiple of 8 times `columns`. `bias` is (C,). `lrn` holds k and
    alpha of the normalization, whose n is 5 and beta 0.75, or is None; with `columns` it stays
    inside each of so many equal parts of the channels.

    As `ops` computes it but for rounding: nothing is rounded to x's dtype between x and the result,
    so in bfloat16 the maximum of a window is that of the unrounded values. Its gradient goes to the
    first of equal maxima, as there; a NaN gives NaN. It runs on an NVIDIA GPU, and on a CPU for
    tests. It can be differentiated once, in reverse.
    """
    span = x.shape[-1] // columns
    return _relu_pool(x, bias.astype(jnp.float32), lrn, span)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _relu_pool(x, bias, lrn, span):
    return _relu_pool_fwd(x, bias, lrn, span)[0]


def _relu_pool_fwd(x, bias, lrn, span):
    n, height, width, channels = x.shape
    out = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    pairs, groups = -(-out[1] // 2), channels // CHANNELS
    rows = _rows(out[0], n * pairs * groups)
    k, alpha = lrn or (1.0, 0.0)
    elements = out[0] * out[1] * channels
    y, saved = _kernel("forward", x.dtype, lrn is not None)(
        *(x.reshape(n, -1), bias.reshape(1, -1)),
        *(height, width, channels, span, rows, k, alpha),
        launch_dims=(n, -(-out[0] // rows), pairs, groups),
        output_dims={"y": (n, elements), "saved": (n, elements)},
    )
    return y.reshape(n, *out, channels), (x, bias, saved)


def _relu_pool_bwd(lrn, span, kept, g):
    x, bias, saved = kept
    n, height, width, channels = x.shape
    row_pairs, pairs, groups = (height + 1) // 2, (width + 1) // 2, channels // CHANNELS
    rows = _rows(row_pairs, n * pairs * groups)
    segments = -(-row_pairs // rows)
    _, alpha = lrn or (1.0, 0.0)
    dx, db = _kernel("backward", x.dtype, lrn is not None)(
        *(x.reshape(n, -1), bias.reshape(1, -1), g.reshape(n, -1), saved),
        *(height, width, channels, span, rows, alpha),
        launch_dims=(n, segments, pairs, groups),
        output_dims={"dx": (n, x[0].size), "db": (n, segments * pairs * channels)},
    )
    return dx.reshape(x.shape), db.reshape(-1, channels).sum(axis=0)


_relu_pool.defvjp(_relu_pool_fwd, _relu_pool_bwd)


def _rows(of_column: int, columns: int) -> int:
    """Return how many rows of a column a thread computes."""
    segments = min(of_column, -(-ENOUGH_THREADS // columns))
    return -(-of_column // segments)


@functools.cache
def _kernel(name: str, dtype: Any, lrn: bool) -> Any:
    """Return a kernel as a function of JAX arrays, loaded on the devices of this process."""
    import warp as wp

    from alexnet_jax import fused_kernels

    kernel = getattr(fused_kernels, name)(wp.dtype_from_jax(dtype), lrn)
    # Not in the first call, for a GPU that records a graph can load nothing.
    devices = [wp.device_from_jax(device) for device in jax.local_devices()]
    wp.load_module(kernel.module, device=devices, block_dim=fused_kernels.THREADS)
    return wp.jax_kernel(
        kernel,
        num_outputs=2,
        module_preload_mode=wp.JaxModulePreloadMode.NONE,
        block_dim=fused_kernels.THREADS,
    )
