"""How long each layer takes by itself: each is compiled and timed separately."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.layers import walk
from alexnet_jax.model import AlexNet

REPEATS, SECONDS = (
    10,
    1.0,
)  # a measurement ends after REPEATS calls, or after SECONDS and three calls


class _Part(AlexNet):
    """A layer with parameters or one of the stages, and the ReLU after it."""

    @nn.compact
    def __call__(self, part: str, x: jax.Array, relu: bool) -> jax.Array:  # type: ignore[override]
        kind = part.rstrip("0123456789")
        number = int(part.removeprefix(kind))
        if part in self.layers:
            x = self._convolution(number - 1, part, x.astype(self.dtype))
        elif kind == "fc":
            widths = [*self.hidden, self.num_classes]
            width = widths[number - len(self.layers) - 1]
            x = self._dense(number, width, x.reshape(x.shape[0], -1))
        elif kind == "dropout":
            x = self._dropout(x, True, None)
        else:
            x = self._stage(kind, x)
        return nn.relu(x) if relu else x


def layer_times(config: ConfigDict, params: Any, images: jax.Array) -> dict[str, dict[str, float]]:
    """Return the seconds that each part of the network takes, forward and backward, on one device.

    A part is a layer or a stage, with the ReLU after it, which a compiler fuses with it. Each is
    compiled by itself; its input is the output of the part before it. `forward` keeps what the
    gradient needs, `backward` computes the gradients of parameters and input (for conv1 only of
    parameters). Times are medians. Parts are not fused with each other, and each reads and writes
    memory, so the sum may exceed the time of the whole network.

    Args:
      config: of the run.
      params: its parameters.
      images: (rows, crop, crop, 3) float32, the network's input.
    """
    model = _Part(**config.model.to_dict(), dtype=jnp.dtype(config.dtype))
    times: dict[str, dict[str, float]] = {}
    x = images * model.input_scale
    for part, relu in _parts(config):
        own = {part: params[part]} if part in params else {}

        def forward(own: Any, x: jax.Array, part: str = part, relu: bool = relu) -> Any:
            def apply(own: Any, x: jax.Array) -> jax.Array:
                rngs = {"dropout": jax.random.key(0)}
                y: Any = model.apply({"params": own}, part, x, relu, rngs=rngs)
                return y

            if part == model.layers[0]:  # it needs no gradient of its input
                return jax.vjp(lambda own: apply(own, x), own)
            return jax.vjp(apply, own, x)

        forwards, backwards = jax.jit(forward), jax.jit(lambda pullback, g: pullback(g))
        y, pullback = forwards(own, x)
        g = jnp.ones_like(y)
        times[part + ("+relu" if relu else "")] = {
            "forward": seconds(forwards, own, x),
            "backward": seconds(backwards, pullback, g),
        }
        x = y
    return times


def seconds(function: Callable, *arguments: Any) -> float:
    """Return the median time of a call with its computation, after a first one that compiles."""
    jax.block_until_ready(function(*arguments))
    each: list[float] = []
    while len(each) < REPEATS and (len(each) < 3 or sum(each) < SECONDS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        each.append(time.perf_counter() - began)
    return statistics.median(each)


def _parts(config: ConfigDict) -> list[tuple[str, bool]]:
    """Return (name, whether a ReLU follows) of the parts in order."""
    names = [part.name for part in walk(config.model, config.augment.crop)]
    follows = [name.startswith("relu") for name in names[1:]] + [False]
    pairs = zip(names, follows, strict=True)
    return [(name, relu) for name, relu in pairs if not name.startswith("relu")]
