"""The time of a training step, beside PyTorch's and that of the same network as Flax makes it.

    python experiments/benchmarks/step.py --torch_python=TORCH/bin/python \
      --out=experiments/results/step_cpu

TORCH is an environment of its own with `pip install torch==2.13.0 numpy`; without it the two rows
of PyTorch are left out. One column of the paper's network at 227 px, with normalisation and
dropout; forward, backward and the update of SGD with momentum and weight decay, on one batch that
lies in memory. It runs on the CPU, or on a GPU where each finds one; in float32, or with
--dtype=bfloat16 and parameters in float32 (PyTorch's by autocast):

* ours: alexnet_jax.AlexNet and alexnet_jax.optim.momentum_sgd, memory kept as run.py keeps it.
* naive: the same parameters and formulas with nn.Conv, nn.max_pool, and a normalisation of
  lax.reduce_window and autodiff.
* torch, torch_compile: torch.nn, channels_last, eager and compiled; on a GPU with cuDNN's search,
  TF32 for float32 as JAX has it, and the fused SGD.
* torch_compile_heap: compiled, and its memory kept in the same way, by glibc's variables.
* torch_compile_graphs: compiled in the mode "reduce-overhead", which replays CUDA graphs.

Each is a process of its own that takes --steps steps when it is told to, and waits for the last, so
that all take turns, in an order that is drawn again each round: what else the machine does falls on
all of them. After --rounds all are started again, --restarts times, for where a process's memory
lies makes some percent of its speed. Before its turns each gives loss and gradients of 32 images
with dropout off, from the same parameters, which are compared.

Writes OUT.json: of each batch size medians and quartiles in seconds, the ratios of the medians to
ours, temporaries of the compiled step by the compiler's count, largest relative differences of
gradients, and what to judge them by: the operations of a step (multiplications and additions of all
layers, forward and both gradients, without conv1's input gradient), and the rate of a large matrix
product on this machine in the same run; of a GPU the most memory that each has held, and the rates
of a copy and of matrix products.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from device_rates import rates
from step_peers import PEERS, operations, serve

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What alexnet_jax.host.heap sets, as variables.
HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**63 - 1),
    "MALLOC_ARENA_MAX": "1",
}
# By default JAX takes three quarters of a GPU, and PyTorch's peers need some as well.
SHARED_GPU = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".3"}


def _product_rate(side: int = 4096) -> float:
    """Return the operations per second of a matrix product of NumPy's, the best of five."""
    a = np.random.default_rng(0).standard_normal((side, side), np.float32)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 2.0 * side**3 / min(times)


def turns(
    size: int, dtype: str, pythons: dict[str, str], rounds: int, steps: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Start the peers once; return their times, what they count, and their gradients."""
    with tempfile.TemporaryDirectory() as scratch:
        peers, counted, gradients = {}, {}, {}
        for name, python in pythons.items():
            saved = pathlib.Path(scratch) / f"{name}.npz"
            command = [
                python,
                __file__,
                f"--serve={name}",
                f"--batch={size}",
                f"--dtype={dtype}",
                f"--gradients={saved}",
            ]
            peers[name] = subprocess.Popen(
                command,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=SHARED_GPU | environment(name) | (HEAP if "heap" in name else {}),
            )
            counted[name] = json.loads(answer(peers[name]))  # one compiles at a time
            with np.load(saved) as file:
                gradients[name] = dict(file)
        times: dict[str, list[float]] = {name: [] for name in peers}
        order = list(peers)
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                stdin = peers[name].stdin
                assert stdin is not None
                print(steps, file=stdin, flush=True)
                times[name].append(json.loads(answer(peers[name])))
        for process in peers.values():
            process.communicate()
    return times, counted, gradients


def compare(
    size: int, dtype: str, pythons: dict[str, str], rounds: int, steps: int, restarts: int
) -> dict[str, Any]:
    """Return what the peers' turns gave with batches of `size`."""
    times: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(restarts):
        found, counted, gradients = turns(size, dtype, pythons, rounds, steps)
        for name, of_peer in found.items():
            times[name] += of_peer
    ours = statistics.median(times["ours"])
    rows = {}
    for name, of_peer in times.items():
        low, median, high = statistics.quantiles(of_peer, n=4)
        rows[name] = {
            "seconds": [float(f"{x:.4g}") for x in (low, median, high)],
            "pictures_per_second": float(f"{size / median:.4g}"),
            "ratio_to_ours": round(median / ours, 3),
            "operations_per_second": operations() * size / median,
            "largest_difference": _largest_difference(gradients[name], gradients["ours"]),
            **counted[name],
        }
    return rows


def environment(peer: str) -> dict[str, str]:
    """Return the environment of a peer: who called has a PYTHONPATH for JAX's only."""
    theirs = None if "torch" in peer else os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), theirs)))}


def answer(process: subprocess.Popen) -> str:
    """Return the next line of a peer."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a peer has ended: see above")
    return line


def _largest_difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the largest difference of loss and gradients, each relative to its largest number."""
    return max(
        float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max())
        for name in wanted
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch_python", help="Python of an environment with PyTorch")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=3, help="at least 1")
    parser.add_argument("--steps", type=int, default=1, help="in one turn; on a GPU take 20")
    parser.add_argument("--peers", choices=PEERS[1:], nargs="+", help="beside ours; default: all")
    parser.add_argument("--out", help="path without extension")
    parser.add_argument("--serve", choices=(*PEERS, "rates"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve == "rates":
        print(json.dumps(rates()))
        return
    if args.serve:
        serve(args.serve, args.batch, args.dtype, args.gradients)
        return
    device = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--serve=rates"],
            check=True,
            stdout=subprocess.PIPE,
            env=environment("rates"),
        ).stdout
    )
    pythons = {"ours": sys.executable, "naive": sys.executable}
    used = versions(sys.executable, "jax", "jaxlib", "flax", "optax")
    if args.torch_python:
        last = "heap" if device["device"] == "cpu" else "graphs"
        torch_peers = ("torch", "torch_compile", f"torch_compile_{last}")
        pythons |= dict.fromkeys(torch_peers, args.torch_python)
        used |= versions(args.torch_python, "torch")
    if args.peers:
        for name in set(args.peers) - set(pythons):
            parser.error(
                f"--peers {name}: not without --torch_python, or not on {device['device']}"
            )
        pythons = {name: pythons[name] for name in ("ours", *args.peers)}
    record: dict[str, Any] = {
        "command": command(args.torch_python),
        "date": time.strftime("%Y-%m-%d"),
        "dtype": args.dtype,
        **device,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": used,
        "operations_per_picture": operations(),
        "matrix_product_operations_per_second": [_product_rate()],
        "batches": {},
    }
    for size in args.batches:
        record["batches"][str(size)] = compare(
            size, args.dtype, pythons, args.rounds, args.steps, args.restarts
        )
        record["matrix_product_operations_per_second"].append(_product_rate())
        print(json.dumps(record["batches"][str(size)], indent=1))
        if args.out:
            pathlib.Path(f"{args.out}.json").write_text(json.dumps(record, indent=1) + "\n")


def command(torch_python: str | None) -> str:
    """Return the command line, without where PyTorch's environment lies."""
    words = (w.replace(torch_python or "\0", "TORCH/bin/python") for w in sys.argv)
    return " ".join(["python", *words])


def versions(python: str, *packages: str) -> dict[str, str]:
    """Return the versions of packages in the environment of another Python."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    said = subprocess.run(
        [python, "-c", code, *packages],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(packages[0]),
    )
    return dict(zip(packages, said.stdout.split(), strict=True))


if __name__ == "__main__":
    main()
