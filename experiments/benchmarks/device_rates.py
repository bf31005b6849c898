"""What a device can do at most: a large matrix product, a large copy."""

import time
from collections.abc import Callable
from typing import Any


def rates() -> dict[str, Any]:
    """Return the name of JAX's device, and what it can do where that is no CPU.

    Operations per second of a large matrix product, in bfloat16 and in float32 with JAX's default
    precision, and bytes read and written per second by a large copy: each the best of five times
    ten.
    """
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    if device.platform == "cpu":
        return {"device": device.device_kind}

    def best(function: Callable, *arguments: Any) -> float:
        compiled = jax.jit(function).lower(*arguments).compile()
        times = []
        for _ in range(6):  # the first warms up
            begun = time.perf_counter()
            for _ in range(10):
                result = compiled(*arguments)
            result.block_until_ready()
            times.append((time.perf_counter() - begun) / 10)
        return min(times[1:])

    found: dict[str, Any] = {"device": device.device_kind}
    side = 8192
    for dtype in ("bfloat16", "float32"):
        a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
        seconds = best(jnp.matmul, a, b)
        found[f"{dtype}_product_operations_per_second"] = 2.0 * side**3 / seconds
    wide = jnp.zeros(2**30, jnp.int8).view(jnp.int32)
    found["copied_bytes_per_second"] = 2.0 * wide.nbytes / best(lambda x: x + 1, wide)
    return found
