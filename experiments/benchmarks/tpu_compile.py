"""What XLA makes of the programs for TPUs: memory, bytes moved, operations, collectives.

    python experiments/benchmarks/tpu_compile.py --out=experiments/results/tpu_compile

No TPU is needed, but an environment with `pip install "jax[tpu]"` (Linux on x86-64): its compiler
takes a topology in place of devices. Of configs/alexnet.py in bfloat16, with --rows images per
chip, it compiles

* train, evaluate, ten_crop: with pmap, on all chips of each of --topologies;
* split: the training step of configs/alexnet_two_device.py, divided over pairs of chips, a pair's
  share being --rows images.

OUT.json is written after each program, and a program that it holds already is left out. For each
program, per chip: seconds of compilation; `arguments` and `temporaries`, and `bytes_moved` and
`operations` by the compiler's count (bytes include what passes between the chip's own memories; a
product in several passes of the matrix unit counts once); its collectives as scaling.py counts
them; and `passes`, the instructions with the most bytes in and out. NOTHING here is a time on a
TPU.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import model, parallel
from alexnet_jax.evaluate import eval_steps
from alexnet_jax.state import abstract_state
from alexnet_jax.step import train_step
from configs import alexnet, alexnet_two_device
from experiments.benchmarks.scaling import collectives

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
PROGRAMS = ("train", "evaluate", "ten_crop", "split")
NUM_TRAIN = 1_281_167
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "s16": 2, "u16": 2, "u8": 1, "s8": 1, "pred": 1}
_INSTRUCTION = re.compile(r"^  (?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")
_NO_PASS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")


class Pmap(parallel.Pmap):
    """`parallel.Pmap` over given devices, which need not exist."""

    def __init__(self, devices: Sequence[Any]) -> None:
        self.devices, self.shares = devices, len(devices)

    def map(self, function: Any, *, updates_state: bool = False) -> Any:
        """As there."""
        donated = (0,) if updates_state else ()
        return jax.pmap(function, parallel.DATA, donate_argnums=donated, devices=self.devices)


class Split(parallel.Split):
    """`parallel.Split` over given devices, which need not exist."""

    def __init__(self, devices: Sequence[Any]) -> None:
        pairs = np.array(devices).reshape(-1, 2)
        self.mesh = jax.sharding.Mesh(pairs, (parallel.DATA, parallel.MODEL))
        self.shares = len(pairs)


def devices_of(topology: str) -> Sequence[Any]:
    """Return the devices of a TPU topology such as 'v5e:2x2', to compile for."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is no machine of Google's
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # of several types
        raise SystemExit(f'error: {topology}: {error} (pip install "jax[tpu]")') from None


def lowered(program: str, config: ConfigDict, devices: Sequence[Any], rows: int) -> Any:
    """Return one of PROGRAMS for so many `rows` per share of `config`'s batch, not yet compiled."""
    sharding = (Split if program == "split" else Pmap)(devices)
    size, shares = config.dataset.image_size, sharding.shares
    state: Any = abstract_state(config)
    leaves = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }
    if program in ("train", "split"):
        del leaves["mask"]

    def of_all(x: Any) -> Any:
        shape = (shares * rows, *x.shape[1:]) if program == "split" else (shares, *x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    batch = jax.tree.map(of_all, leaves)
    if program != "split":  # pmap's arrays have an axis of devices
        state = jax.tree.map(of_all, state)
    if program in ("evaluate", "ten_crop"):
        return eval_steps(config, sharding)[program == "ten_crop"].lower(state, batch)
    network = model.from_config(config, sharding.column_axis)
    step = functools.partial(train_step, model=network, config=config, num_train=NUM_TRAIN)
    return sharding.map(step, updates_state=True).lower(state, batch)


def counts(program: Any) -> dict[str, Any]:
    """Return what the compiler says of a compiled program."""
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    return {
        "arguments_mb": round(memory.argument_size_in_bytes / 1e6),
        "temporaries_mb": round(memory.temp_size_in_bytes / 1e6),
        "bytes_moved_gb": round(cost["bytes accessed"] / 1e9, 2),
        "operations_gflop": round(cost["flops"] / 1e9),
        "collectives": collectives(text),
        "passes": passes(text)[:12],
    }


def passes(program: str) -> list[dict[str, Any]]:
    """Return the instructions of a compiled program's entry, those with the most bytes first.

    Of each its `megabytes` in and out, its `kind`, its largest `array` and what it is `of`.
    """
    entry = program[program.index("\nENTRY ") :].splitlines()
    instructions = [found.groups() for line in entry if (found := _INSTRUCTION.match(line))]
    shapes = {name: shape for name, shape, *_ in instructions}
    rows = []
    for _, shape, kind, operands, rest in instructions:
        if kind in _NO_PASS:
            continue
        arrays = [shape, *(shapes.get(name, "") for name in re.findall(r"%[\w.-]+", operands))]
        each = [array for text in arrays for array in re.findall(r"(\w+)\[([\d,]*)\]", text)]
        sized = sorted((_size(*array), "{}[{}]".format(*array)) for array in each)
        source = re.search(r'op_name="([^"]*)"', rest)
        row = {"megabytes": round(sum(size for size, _ in sized) / 1e6), "kind": kind}
        row["array"] = sized[-1][1] if sized else ""
        row["of"] = source[1].rpartition("shard_map/")[2] if source else ""
        rows.append(row)
    return sorted(rows, key=lambda row: -row["megabytes"])


def _size(dtype: str, sides: str) -> int:
    return _BYTES.get(dtype, 0) * int(np.prod([int(side) for side in sides.split(",") if side]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="TOPOLOGY")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--rows", type=int, default=256, help="images per chip; default: 256")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="without extension")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    path = pathlib.Path(f"{options.out}.json")
    report = json.loads(path.read_text()) if path.exists() else {"programs": {}}
    report |= {
        "command": "python experiments/benchmarks/tpu_compile.py --out=OUT",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
        "rows": options.rows,
    }
    for topology in options.topologies:
        for program in options.programs:
            name = f"{topology} {program}"
            if name in report["programs"]:
                continue
            config = (alexnet_two_device if program == "split" else alexnet).get_config()
            config.dtype = "bfloat16"
            not_compiled = lowered(program, config, devices_of(topology), options.rows)
            began = time.perf_counter()
            found = not_compiled.compile()
            seconds = round(time.perf_counter() - began, 1)
            report["programs"][name] = {"compile_seconds": seconds, **counts(found)}
            path.write_text(json.dumps(report, indent=1) + "\n")
            said = {k: v for k, v in report["programs"][name].items() if not isinstance(v, list)}
            print(name, json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
