"""The time of each convolution, by its forward pass and its two gradients, beside PyTorch's.

    python experiments/benchmarks/convolutions.py --torch_python=TORCH/bin/python \
      --out=experiments/results/convolutions_cpu

The convolutions of the paper's network in one column at 227 px, alone and on arrays that lie in
memory: ours as alexnet_jax.conv computes them, xla as lax.conv_general_dilated and its transposes
do, torch as PyTorch's do in channels_last. Each is a process of its own, memory kept in each
(alexnet_jax.heap, or the same by glibc's variables), and they take turns as in step.py. Writes
OUT.json: of each batch size, convolution and pass the medians and quartiles in milliseconds, and
the median in billions of operations per second.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import step
from step_peers import FEATURES, KERNELS, PADDING, POOLED, SIDE, STRIDES

PASSES = ("forward", "input", "weights")


def shapes(size: int) -> dict[str, dict[str, Any]]:
    """Return of each convolution the shapes of images and kernel, stride, padding, operations."""
    side, channels = SIDE, 3
    found = {}
    for i, features in enumerate(FEATURES):
        kernel, stride, padding = KERNELS[i], STRIDES[i], PADDING[i]
        out = (side + 2 * padding - kernel) // stride + 1
        found[f"conv{i + 1}"] = {
            "x": (size, side, side, channels),
            "kernel": (kernel, kernel, channels, features),
            "g": (size, out, out, features),
            "stride": stride,
            "padding": padding,
            "operations": 2.0 * size * out * out * features * kernel**2 * channels,
        }
        side, channels = (out - 3) // 2 + 1 if i in POOLED else out, features
    return found


def arrays(case: dict[str, Any]) -> list[np.ndarray]:
    """Return images, kernel and the gradient of the output of a case of `shapes`."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(case[name], np.float32) for name in ("x", "kernel", "g")]


def jax_passes(case: dict[str, Any], ours: bool) -> dict[str, Callable[[], Any]]:
    """Return the three passes of a convolution, compiled by JAX."""
    import jax

    from alexnet_jax import conv

    convolve: Any = conv.conv_general_dilated if ours else jax.lax.conv_general_dilated
    x, kernel, g = map(jax.device_put, arrays(case))
    stride, padding = (case["stride"],) * 2, [(case["padding"],) * 2] * 2

    def of(x: jax.Array, kernel: jax.Array) -> Any:
        return convolve(x, kernel, stride, padding, dimension_numbers=conv.NHWC)

    forward = jax.jit(of)
    by_input = jax.jit(lambda x, kernel, g: jax.vjp(lambda x: of(x, kernel), x)[1](g))
    by_weights = jax.jit(lambda x, kernel, g: jax.vjp(lambda k: of(x, k), kernel)[1](g))
    return {
        "forward": lambda: jax.block_until_ready(forward(x, kernel)),
        "input": lambda: jax.block_until_ready(by_input(x, kernel, g)),
        "weights": lambda: jax.block_until_ready(by_weights(x, kernel, g)),
    }


def torch_passes(case: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the same of PyTorch."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, kernel, g = map(torch.from_numpy, arrays(case))
    x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)  # channels_last as they lie
    kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    stride, padding = [case["stride"]] * 2, [case["padding"]] * 2

    def gradient(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, kernel, None, stride, padding, [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, None, stride, padding),
        "input": lambda: gradient(True, False),
        "weights": lambda: gradient(False, True),
    }


def _serve(peer: str, size: int) -> None:
    """Be a peer: time the convolution and pass that each line on stdin names."""
    if peer == "ours" or peer == "xla":
        from alexnet_jax.host import heap

        heap.keep()
    made = {
        name: torch_passes(case) if peer == "torch" else jax_passes(case, peer == "ours")
        for name, case in shapes(size).items()
    }
    for passes in made.values():
        for take in passes.values():
            take(), take()  # compiles, and warms up
    print("ready", flush=True)
    for line in sys.stdin:
        layer, which = line.split()
        begun = time.perf_counter()
        made[layer][which]()
        print(time.perf_counter() - begun, flush=True)


def compare(size: int, pythons: dict[str, str], rounds: int) -> dict[str, Any]:
    """Return what the peers' turns gave with batches of `size`."""
    peers = {}
    for name, python in pythons.items():
        peers[name] = subprocess.Popen(
            [python, __file__, f"--serve={name}", f"--batch={size}"],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"PYTHONPATH": str(step.ROOT)}
            | (step.HEAP if name == "torch" else {}),
        )
        step.answer(peers[name])
    found: dict[str, Any] = {}
    for layer, case in shapes(size).items():
        for which in PASSES:
            if (layer, which) == ("conv1", "input"):  # images need no gradient
                continue
            times: dict[str, list[float]] = {name: [] for name in peers}
            order = list(peers)
            for _ in range(rounds):
                random.shuffle(order)
                for name in order:
                    peers[name].stdin.write(f"{layer} {which}\n")  # type: ignore[union-attr]
                    peers[name].stdin.flush()  # type: ignore[union-attr]
                    times[name].append(float(step.answer(peers[name])))
            found[f"{layer} {which}"] = {
                name: {
                    "milliseconds": round(1e3 * statistics.median(of_peer), 1),
                    "quartiles": [
                        round(1e3 * q, 1) for q in statistics.quantiles(of_peer, n=4)[::2]
                    ],
                    "gop_per_second": round(case["operations"] / statistics.median(of_peer) / 1e9),
                }
                for name, of_peer in times.items()
            }
            print(size, layer, which, found[f"{layer} {which}"], flush=True)
    for process in peers.values():
        process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch_python", help="Python of an environment with PyTorch")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="path without extension")
    parser.add_argument("--serve", choices=("ours", "xla", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        _serve(args.serve, args.batch)
        return
    pythons = {"ours": sys.executable, "xla": sys.executable}
    versions = step.versions(sys.executable, "jax", "jaxlib")
    if args.torch_python:
        pythons["torch"] = args.torch_python
        versions |= step.versions(args.torch_python, "torch")
    record = {
        "command": step.command(args.torch_python),
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
        "batches": {str(n): compare(n, pythons, args.rounds) for n in args.batches},
    }
    if args.out:
        pathlib.Path(f"{args.out}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
