"""The fused block on a GPU: is it right, how fast is it, and how far from what memory allows?

    python experiments/benchmarks/fused.py --out=experiments/results/fused_gpu

Needs an NVIDIA GPU and `pip install warp-lang`; takes about three minutes. In bfloat16, for the
feature maps of conv1, conv2 and conv5 and batches of 128 and 1,024 images:

* correct: output and both gradients of fused.relu_pool and of the operations that it replaces, each
  against the same formulas in float32, as the norm of the difference over the norm. The script ends
  with exit code 1 if one of fused.relu_pool's exceeds 3e-3.
* block: milliseconds of either, forward and with its gradients, and what the bytes that must move
  would take at the rate of a large copy on this machine.
* step: a training step of the whole network with either. The search for the fastest convolutions
  is off by default, for it takes a minute per program; --autotune_level=4 turns it on.

The programs of a row take turns, --rounds times; times are medians. Writes OUT.json.

    python experiments/benchmarks/fused.py --check

runs the same kernels on a CPU, on small feature maps, and compares them as above.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Side and channels of the feature maps, and whether they are normalized.
LAYERS = {"conv1": (55, 96, True), "conv2": (27, 256, True), "conv5": (13, 256, False)}
SMALL = {"conv1": (11, 24, True), "conv2": (8, 32, True), "conv5": (7, 16, False)}
BATCHES = (128, 1024)
LARGEST_ERROR = 3e-3
K, ALPHA = 2.0, 1e-4


def least_bytes(side: int, channels: int, batch: int, lrn: bool) -> dict[str, int]:
    """Return the bytes that must move in bfloat16, with the word that is saved per output.

    The gradient reads the feature maps again only if they are normalized.
    """
    out = (side - 3) // 2 + 1
    maps, outputs = 2 * batch * side**2 * channels, batch * out**2 * channels
    forward = maps + (2 + 4) * outputs
    return {"forward": forward, "both": forward + (2 if lrn else 1) * maps + (2 + 4) * outputs}


def operations(lrn: bool) -> dict[str, Callable[..., Any]]:
    """Return the block as functions of x and bias: fused, and as the model has it without."""
    import jax

    from alexnet_jax import fused, ops

    def plain(x: Any, bias: Any) -> Any:
        x = jax.nn.relu(x + bias.astype(x.dtype))
        return ops.max_pool(ops.local_response_norm(x, k=K, alpha=ALPHA) if lrn else x)

    def one(x: Any, bias: Any) -> Any:
        return fused.relu_pool(x, bias, lrn=(K, ALPHA) if lrn else None)

    return {"fused": one, "plain": plain}


def both_ways(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that gives the result and the gradients of x and bias."""
    import jax

    def run(x: Any, bias: Any, g: Any) -> Any:
        y, vjp = jax.vjp(function, x, bias)
        return y, *vjp(g)

    return run


def inputs(side: int, channels: int, batch: int) -> tuple[Any, Any, Any]:
    import jax

    keys = jax.random.split(jax.random.key(0), 3)
    out = (side - 3) // 2 + 1
    x = 5 * jax.random.normal(keys[0], (batch, side, side, channels), "bfloat16")
    bias = jax.random.normal(keys[1], (channels,))
    return x, bias, jax.random.normal(keys[2], (batch, out, out, channels), "bfloat16")


def differences(layers: dict[str, tuple[int, int, bool]], batch: int) -> dict[str, Any]:
    """Return the errors of y, dx and db of either against float32, by layer."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def error(one: Any, other: Any) -> Any:
        one = one.astype(jnp.float32)
        return jnp.linalg.norm((one - other).ravel()) / jnp.linalg.norm(other.ravel())

    found: dict[str, Any] = {}
    for name, (side, channels, lrn) in layers.items():
        arrays = inputs(side, channels, batch)
        wide = [v.astype(jnp.float32) for v in arrays]
        functions = operations(lrn)
        want = jax.jit(both_ways(functions["plain"]))(*wide)
        found[name] = {
            kind: [float(f"{error(*pair):.2g}") for pair in zip(got, want, strict=True)]
            for kind, function in functions.items()
            for got in [jax.jit(both_ways(function))(*arrays)]
        }
        print(name, "errors of y, dx, db:", json.dumps(found[name]), flush=True)
    return found


def in_turns(programs: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, float]:
    """Return the median seconds of a call of each program, all taking turns."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    for _ in range(rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            for _ in range(calls):
                result = program()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - begun) / calls)
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def blocks(rounds: int, bytes_per_second: float) -> dict[str, Any]:
    """Return the milliseconds of the blocks."""
    import functools

    import jax

    found: dict[str, Any] = {}
    for batch in BATCHES:
        for name, (side, channels, lrn) in LAYERS.items():
            x, bias, g = inputs(side, channels, batch)
            programs: dict[str, Callable[[], Any]] = {}
            for kind, function in operations(lrn).items():
                programs[f"{kind} forward"] = functools.partial(jax.jit(function), x, bias)
                both = jax.jit(both_ways(function))
                programs[f"{kind} both"] = functools.partial(both, x, bias, g)
            times = in_turns(programs, rounds, 10)
            limits = least_bytes(side, channels, batch, lrn)
            row = {f"{what}, ms": round(1e3 * seconds, 4) for what, seconds in times.items()}
            for what, moved in limits.items():
                limit = moved / bytes_per_second
                row[f"limit {what}, ms"] = round(1e3 * limit, 4)
                row[f"fused {what} over its limit"] = round(times[f"fused {what}"] / limit, 2)
            found[f"{name}, {batch} images"] = row
            print(f"{name}, {batch} images:", json.dumps(row), flush=True)
    return found


def step_program(images: Any, labels: Any, relu_pool: Any, autotune_level: int) -> Callable:
    """Return a function that takes a training step, from the state that the last one left."""
    import jax
    import jax.numpy as jnp
    import optax
    from step_peers import CLASSES, DECAY, MOMENTUM, RATE

    from alexnet_jax import AlexNet
    from alexnet_jax.optim import momentum_sgd

    model = AlexNet(num_classes=CLASSES, dtype=jnp.bfloat16, relu_pool=relu_pool)
    optimizer = momentum_sgd(RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def loss(params: Any, images: Any, labels: Any, key: Any) -> Any:
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state: Any, images: Any, labels: Any) -> Any:
        params, opt_state, number = state
        key = jax.random.fold_in(jax.random.key(0), number)
        gradient = jax.grad(loss)(params, images, labels, key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, number + 1

    params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
    held = [(params, optimizer.init(params), jnp.int32(0))]
    lowered = jax.jit(step, donate_argnums=0).lower(held[0], images, labels)
    options: Any = {"xla_gpu_autotune_level": autotune_level}
    program = lowered.compile(options)

    def take() -> Any:
        held[0] = program(held[0], images, labels)
        return held[0][2]

    return take


def steps(rounds: int, autotune_level: int) -> dict[str, Any]:
    """Return the milliseconds of a training step, and images per second."""
    import jax
    from step_peers import CLASSES, SIDE

    from alexnet_jax import fused

    found: dict[str, Any] = {}
    for batch in BATCHES:
        images = jax.random.normal(jax.random.key(1), (batch, SIDE, SIDE, 3))
        labels = jax.random.randint(jax.random.key(2), (batch,), 0, CLASSES)
        programs = {
            kind: step_program(images, labels, relu_pool, autotune_level)
            for kind, relu_pool in (("fused", fused.relu_pool), ("plain", None))
        }
        times = in_turns(programs, rounds, 10)
        found[str(batch)] = {
            kind: {"ms": round(1e3 * t, 3), "images_per_second": round(batch / t)}
            for kind, t in times.items()
        }
        print(f"step, {batch} images:", json.dumps(found[str(batch)]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare small ones on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--autotune_level", type=int, default=0, help="of XLA, for the step")
    parser.add_argument("--out", help="path without extension")
    args = parser.parse_args()
    if args.check:
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from alexnet_jax import fused
    from alexnet_jax.errors import InputError

    try:
        if not args.check:
            fused.refuse_missing()
        found = differences(SMALL if args.check else LAYERS, 2 if args.check else BATCHES[0])
    except (InputError, ModuleNotFoundError):
        print(
            f"this needs NVIDIA Warp (pip install '{fused.WARP}') and an NVIDIA GPU; with --check"
            " it runs small feature maps on a CPU",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "errors_against_float32": found,
    }
    if not args.check:
        from device_rates import rates

        record |= rates()
        record["blocks"] = blocks(args.rounds, record["copied_bytes_per_second"])
        record["steps"] = steps(args.rounds, args.autotune_level)
    if args.out:
        pathlib.Path(f"{args.out}.json").write_text(json.dumps(record, indent=1) + "\n")
    if max(max(of_layer["fused"]) for of_layer in found.values()) > LARGEST_ERROR:
        raise SystemExit(f"an error of the fused block is above {LARGEST_ERROR}")


if __name__ == "__main__":
    main()
