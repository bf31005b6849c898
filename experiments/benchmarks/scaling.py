"""What training on several devices sends between them, read from the compiled step, and a MODEL.

    python experiments/benchmarks/scaling.py --out=experiments/results/scaling \
      --case="2 CPU cores, 10 Gbit/s:128:STEP_SECONDS:1.25"

The training steps of configs/alexnet.py on 1 to 8 devices, and of configs/alexnet_two_device.py
on 2 to 8 split in pairs, are compiled for forced CPU devices, and their collectives counted. What a
device sends and receives of each is the size of the whole array by the ring algorithms: of B bytes
over n devices 2 (n-1)/n B in an all-reduce, (n-1)/n B in an all-gather or a reduce-scatter.

The MODEL of the time of a step on n devices is not a measurement: it adds to the step of one
device, as given by `--case=NAME:ROWS:SECONDS:GB_PER_SECOND`, the time that the gradient's
all-reduce takes over links of that bandwidth, each way, with nothing overlapped. Either the rows a
device are kept (a batch that grows with n), or the batch is (rows that shrink).
"""

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COMPILED = [("pmap", n) for n in (1, 2, 4, 8)] + [("split", n) for n in (2, 4, 8)]
DEVICES = (1, 2, 4, 8, 16, 32, 64)
BATCH = 128
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito
_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}


def collectives(program: str) -> list[dict[str, Any]]:
    """Return the collectives between two devices or more in the text of a compiled program.

    Of each its `kind`, `arrays` (how many it takes at once), `bytes` (of them, whole: what is
    gathered, what is scattered), `group` (the devices of its first group) and `bytes_sent` (by a
    device, with the ring algorithms). One in a loop is counted once.
    """
    found = []
    line = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})\(.*replica_groups=(mesh.*?\}}|\S+)")
    for shapes, kind, groups in line.findall(program):
        arrays = [
            _BYTES[dtype] * int(np.prod([int(side) for side in sides.split(",") if side]))
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        group = _first_group(groups)
        number = len(group)
        if number < 2:
            continue
        size = sum(arrays) * (number if kind == "reduce-scatter" else 1)
        rounds = 2 if kind == "all-reduce" else 1
        sent = size if kind == "collective-permute" else rounds * size * (number - 1) / number
        found.append(
            {
                "kind": kind,
                "arrays": len(arrays),
                "bytes": size,
                "group": group,
                "bytes_sent": round(sent),
            }
        )
    return found


def _first_group(groups: str) -> list[int]:
    """Return the devices of the first of the groups.

    They are written {{0,1},{2,3}} or [2,2]<=[4], since jax 0.12 mesh['data'=2,'model'=2] {'model'}.
    """
    if groups.startswith("mesh"):
        mesh, _, along = groups.partition(" ")
        axes = re.findall(r"('\w+')=(\d+)", mesh)
        devices = np.arange(np.prod([int(side) for _, side in axes]))
        devices = devices.reshape([int(side) for _, side in axes])
        return (
            devices[tuple(slice(None) if axis in along else 0 for axis, _ in axes)].ravel().tolist()
        )
    if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):
        shape = [int(side) for side in iota[3].split(",")]
        devices = np.arange(np.prod(shape)).reshape(shape)
        if iota[4]:
            devices = devices.transpose([int(axis) for axis in iota[4].split(",")])
        return devices.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    return [int(device) for device in groups.lstrip("{").partition("}")[0].split(",")]


def compiled_step(config: Any, devices: int) -> Any:
    """Return the training step of `config`, compiled for `devices` devices and no data."""
    import jax
    import jax.numpy as jnp

    from alexnet_jax import model, parallel
    from alexnet_jax.state import abstract_state
    from alexnet_jax.step import train_step

    sharding = parallel.sharding(config)
    rows, size = config.batch_size, config.dataset.image_size
    state: Any = abstract_state(config)
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    if sharding.column_axis is None:  # pmap's arrays have an axis of devices

        def shaped(*shape: int, like: Any) -> Any:
            return jax.ShapeDtypeStruct(shape, like.dtype)

        state = jax.tree.map(lambda x: shaped(devices, *x.shape, like=x), state)
        batch = jax.tree.map(
            lambda x: shaped(devices, rows // devices, *x.shape[1:], like=x), batch
        )
    network = model.from_config(config, sharding.column_axis)
    step = functools.partial(train_step, model=network, config=config, num_train=1_281_167)
    return sharding.map(step, updates_state=True).lower(state, batch).compile()


def count(layout: str, devices: int) -> dict[str, Any]:
    """Return the collectives of a recipe's step in this process, which sees so many devices."""
    import jax

    from alexnet_jax.state import abstract_state
    from configs import alexnet, alexnet_two_device

    config = (alexnet if layout == "pmap" else alexnet_two_device).get_config()
    config.batch_size = BATCH
    found = collectives(compiled_step(config, devices).as_text())
    parameters = jax.tree.leaves(abstract_state(config).params)
    return {
        "layout": layout,
        "devices": devices,
        "parameter_bytes": 4 * sum(leaf.size for leaf in parameters),
        "bytes_sent": sum(c["bytes_sent"] for c in found),
        "collectives": found,
    }


def modelled(case: str, parameter_bytes: int) -> dict[str, Any]:
    """Return the MODEL's images per second for NAME:ROWS:SECONDS:GB_PER_SECOND."""
    name, rows, step, bandwidth = case.rsplit(":", 3)
    result: dict[str, Any] = {
        "name": name,
        "rows": int(rows),
        "measured_step_seconds": float(step),
        "gigabytes_a_second": float(bandwidth),
        "devices": DEVICES,
    }
    sent = [2 * (n - 1) / n * parameter_bytes / float(bandwidth) / 1e9 for n in DEVICES]
    grows = [float(step) + s for s in sent]
    stays = [float(step) / n + s for n, s in zip(DEVICES, sent, strict=True)]
    of_rows = zip(DEVICES, grows, strict=True)
    result["rows_a_device_kept"] = [round(n * int(rows) / s, 1) for n, s in of_rows]
    result["batch_kept"] = [round(int(rows) / s, 1) for s in stays]
    return result


def plot(report: dict[str, Any], path: str) -> None:
    """Draw what a device sends in a step, by kind of collective, and the MODEL."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
    names = [f"{r['layout']}\n{r['devices']}" for r in report["compiled"]]
    base = np.zeros(len(names))
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        sent = [
            sum(c["bytes_sent"] for c in r["collectives"] if c["kind"] == kind) / 1e6
            for r in report["compiled"]
        ]
        if not any(sent):
            continue
        left.bar(names, sent, bottom=base, label=kind, color=colour)
        base += sent
    for x, r in enumerate(report["compiled"]):
        text = f"{base[x]:,.0f}\n({len(r['collectives'])})"
        left.text(x, base[x] + 8, text, ha="center", fontsize=8)
    left.set(
        ylabel="MB sent per device and step",
        title=f"From the compiled step, batch {BATCH}\n(number of collectives)",
        ylim=(0, base.max() * 1.2),
    )
    left.legend(fontsize=8, frameon=False, loc="upper left")
    for case, colour in zip(report["model"], COLOURS, strict=False):
        for key, style in (("rows_a_device_kept", "o-"), ("batch_kept", "s--")):
            share = [rate / (n * case[key][0]) for n, rate in zip(DEVICES, case[key], strict=True)]
            words = key.replace("_", " ").replace(
                "rows a device", f"{case['rows']} rows per device"
            )
            name = f"{case['name']}: {words}"
            right.plot(DEVICES, share, style, color=colour, label=name, markersize=4)
    right.set_xscale("log", base=2)
    right.set_xticks(DEVICES, [str(n) for n in DEVICES])
    right.set(
        xlabel="devices",
        ylabel="images/s, as a share of n single devices",
        title="MODEL, not measured:\nstep of one device + all-reduce, no overlap",
        ylim=(0, 1.05),
    )
    right.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compile everything, each in a process of its own, and write the report and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", default=[], help="of the MODEL, see above")
    parser.add_argument("--out", help="path without extension")
    parser.add_argument("--only", help="LAYOUT/DEVICES: what one process compiles")
    options = parser.parse_args()
    if options.only:
        layout, devices = options.only.split("/")
        print(json.dumps(count(layout, int(devices))))
        return
    compiled = []
    for layout, devices in COMPILED:
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, __file__, f"--only={layout}/{devices}"]
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE)
        done.check_returncode()
        compiled.append(json.loads(done.stdout.splitlines()[-1]))
        numbers = {k: v for k, v in compiled[-1].items() if k != "collectives"}
        print(numbers, len(compiled[-1]["collectives"]), "collectives", flush=True)
    report = {
        "command": "python experiments/benchmarks/scaling.py "
        + " ".join(f'--case="{case}"' for case in options.case)
        + " --out=experiments/results/scaling",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"jax": metadata.version("jax"), "jaxlib": metadata.version("jaxlib")},
        "batch_size": BATCH,
        "compiled": compiled,
        "model": [modelled(case, compiled[0]["parameter_bytes"]) for case in options.case],
    }
    pathlib.Path(f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, f"{options.out}.png")


if __name__ == "__main__":
    main()
