"""Images per second: this input, PyTorch's DataLoader, tf.data, and the bare decoder as limit.

    python experiments/benchmarks/input.py WHAT --pictures=IMAGENETTE --scratch=DIR \
      --torch_python=TORCH/bin/python --tf_python=TF/bin/python --out=OUT

IMAGENETTE is a folder of photographs, `train/<class>/*`. TORCH and TF are environments with torch
and pillow (for scaling also torchvision, where it works), and with tensorflow-cpu. A peer whose
environment is not given is left out. Writes OUT.json and OUT.png. WHAT is one of:

peers     on one core. The data are 4,000 images composed of the photographs, that have the sizes of
          ImageNet's. All give shuffled batches of 128 uint8 squares of 256 px with labels, and no
          augmentation, of
            jpeg    256 px JPEG: ours from the prepared set, PyTorch from one file each with Pillow,
                    tf.data from TFRecords; the limit is simplejpeg into one reused buffer;
            raw     256 px uint8: PyTorch from one memory map; the limit is a copy from memory;
            native  JPEG of ImageNet's sizes: the peers decode, resize and crop them in every epoch;
                    ours does so once, and is timed preparing: with encoding and writing. The limit
                    is decoding alone.
          Last, training steps of alexnet on all cores with real input and with one batch that stays
          on the device, in turns.
scaling   the photographs, prepared at 256 px as jpeg and as raw, on 1, 2, 4, ... cores with as many
          threads, worker processes, and workers of PyTorch's DataLoader (input_scaling.py).
costs     the CPU time of an image and its parts, and of starting workers (input_costs.py).
copy      a batch from the host's memory to JAX's device (input_copy.py); needs no photographs.

Each measurement of an input is a process of its own, in turns, `--rounds` times; the medians are
reported: images per second of wall time and per second of CPU time over all its processes, which
other programs on the machine disturb less, the memory (PSS) of all its processes, and when the
first batch was there. The files are in the page cache.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import input_copy
import input_costs
import input_scaling
from input_peers import BATCH, SIZE, measure, stored_images

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ("limit", "ours", "torch", "tf")
# Width and height of ImageNet's training images: mostly 500 x 375, some larger, some smaller.
SIZES = ((500, 375), (500, 375), (500, 333), (375, 500), (500, 500), (640, 480), (800, 600))


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", choices=("peers", "scaling", "costs", "copy"), default="peers"
    )
    parser.add_argument("--pictures", type=pathlib.Path)
    parser.add_argument("--scratch", type=pathlib.Path)
    parser.add_argument("--torch_python")
    parser.add_argument("--tf_python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["jpeg", "raw"], help="of scaling")
    parser.add_argument("--cores", type=int, nargs="+", help="of scaling; default: 1, 2, 4, ...")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024], help="of copy")
    parser.add_argument("--steps", type=int, default=12, help="training steps of each kind")
    parser.add_argument("--out", help="path without extension")
    parser.add_argument("--only", help="KIND/PEER: what one process measures")
    return parser.parse_args()


# --- the data ---------------------------------------------------------------------------------


def compose(images: pathlib.Path, folder: pathlib.Path, number: int) -> None:
    """Writes images of ImageNet's sizes, each of four photographs side by side."""
    import numpy as np
    from PIL import Image

    from alexnet_jax.prepare import FORMATS

    files = sorted(images.glob("train/*/*"))
    random = np.random.default_rng(0)
    for i in range(number):
        target = (
            folder
            / ("val" if i % 100 == 99 else "train")
            / f"class{i // 100 % 10}"
            / f"{i:05d}.jpg"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        mosaic = Image.new("RGB", (448, 448))
        for corner, index in enumerate(random.integers(len(files), size=4)):
            with Image.open(files[index], formats=tuple(FORMATS)) as image:
                mosaic.paste(
                    image.convert("RGB").resize((224, 224)), (corner % 2 * 224, corner // 2 * 224)
                )
        size = SIZES[random.integers(len(SIZES))]
        mosaic.resize(size, Image.Resampling.BICUBIC).save(target, quality=95)


def make_data(options: argparse.Namespace) -> dict:
    """Make the files that do not exist yet, and return the mean bytes per image."""
    native, files = options.scratch / "native", options.scratch / "files"
    if not native.exists():
        compose(options.pictures, native, 4000)
    if not files.exists():
        files.mkdir()
        with (options.scratch / "raw.bin").open("wb") as pixels:
            for image, _ in stored_images(options.scratch, "raw"):
                pixels.write(image)
        for i, (image, label) in enumerate(stored_images(options.scratch, "jpeg")):
            (files / f"{i:05d}_{label}.jpg").write_bytes(image)

    def mean(paths: Iterable[pathlib.Path]) -> int:
        return round(statistics.mean(path.stat().st_size for path in paths))

    return {
        "jpeg": mean(files.iterdir()),
        "native": mean(native.glob("train/*/*")),
        "raw": 3 * SIZE**2,
    }


# --- all of them, in turns --------------------------------------------------------------------


def run_one(
    options: argparse.Namespace, name: str, scratch: pathlib.Path | None = None
) -> dict[str, float]:
    """Measure `name` in a process of its own, with the data in `scratch`, or in the options'."""
    peer = name.removeprefix("scaling/").split("/")[1:][:1]
    python = sys.executable
    if peer in (["torch"], ["tf"]):
        python = {"torch": options.torch_python, "tf": options.tf_python}[peer[0]]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, f"--only={name}", f"--scratch={scratch or options.scratch}"]
    command.append(f"--steps={options.steps}")
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def plot(report: dict, path: str) -> None:
    """Draw the rates per CPU second of all kinds and peers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"jpeg": "JPEG, 256 px", "raw": "uint8, 256 px", "native": "JPEG, native sizes"}
    labels = {"limit": "decoder\nalone", "ours": "this\ninput", "torch": "PyTorch", "tf": "tf.data"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        rates = report["results"][kind]
        names = [peer for peer in PEERS if peer in rates]
        values = [rates[peer]["images_per_cpu_second"] for peer in names]
        colours = ["#b0b0b0", "#c0392b", "#2e6da4", "#e08e0b"]
        texts = [labels[n] if (kind, n) != ("native", "ours") else "preparing" for n in names]
        bars = axis.bar(texts, values, color=[colours[PEERS.index(n)] for n in names])
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=8)
        axis.set_title(f"{title} ({report['bytes_a_picture'][kind] / 1000:.0f} kB)", fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("images / CPU second")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Return the versions of what was measured."""
    from importlib import metadata

    found = {n: metadata.version(n) for n in ("jax", "array_record", "simplejpeg", "pillow")}
    for python, name in ((options.torch_python, "torch"), (options.tf_python, "tensorflow")):
        if python:
            code = f"from importlib import metadata as m; print(m.version('{name}'))"
            code = code.replace("'tensorflow'", "'tensorflow-cpu'")
            found[name] = subprocess.check_output([python, "-c", code], text=True).strip()
    return found | {"python": sys.version.split()[0]}


def about(options: argparse.Namespace) -> dict:
    """Return what a report begins with: how it was made, on what."""
    placeholders = {"pictures": "FOLDER", "scratch": "DIR", "out": "OUT"}
    placeholders |= {"torch_python": "TORCH/bin/python", "tf_python": "TF/bin/python"}
    given = []
    for name, value in vars(options).items():
        if value and name not in ("what", "only"):
            value = " ".join(map(str, value)) if isinstance(value, list) else value
            given.append(f"--{name} {placeholders.get(name, value)}")
    return {
        "command": f"python experiments/benchmarks/input.py {options.what} {' '.join(given)}",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": next(
            line.split(":")[1].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[2], 1),  # more than the cores: others were at work
        "batch_size": BATCH,
        "versions": versions(options),
    }


def write(report: dict, out: str | None) -> None:
    """Print the report, and write it where that is asked for."""
    print(json.dumps(report, indent=1))
    if out:
        pathlib.Path(f"{out}.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Measure everything and write the report and the plot."""
    options = arguments()
    if options.only:
        print(json.dumps(measure(options.only, options.scratch, options.steps)))
        return
    sys.path.insert(0, str(ROOT))
    if options.what == "copy":
        write(about(options) | input_copy.measured(options.batches), options.out)
        return
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.what == "costs":
        scratch = input_scaling.prepare(options.pictures, options.scratch)
        rounds = options.rounds
        costs = {kind: input_costs.measured(scratch, kind, rounds) for kind in options.kinds}
        write(about(options) | costs, options.out)
        return
    if options.what == "scaling":
        report = input_scaling.report(options, one=lambda name, at: run_one(options, name, at))
        write(about(options) | report, options.out)
        input_scaling.plot(report, f"{options.out}.png")
        return
    sizes = make_data(options)
    given = {"limit": True, "ours": True, "torch": options.torch_python, "tf": options.tf_python}
    names = [
        f"{kind}/{peer}" for kind in ("jpeg", "raw", "native") for peer in PEERS if given[peer]
    ]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for round_ in range(options.rounds):
        for name in names:
            runs[name].append(run_one(options, name))
            print(round_, name, {k: round(v) for k, v in runs[name][-1].items()}, flush=True)
    results: dict[str, dict] = {}
    for name, of_name in runs.items():
        kind, _, peer = name.partition("/")
        results.setdefault(kind, {})[peer] = {
            key: round(statistics.median(run[key] for run in of_name), 1) for key in of_name[0]
        } | {"all_images_per_cpu_second": [round(run["images_per_cpu_second"]) for run in of_name]}
    report = about(options) | {
        "cores_a_measurement": 1,
        "bytes_a_picture": sizes,
        "results": results,
        "overlap": run_one(options, "overlap"),
    }
    write(report, options.out)
    plot(report, f"{options.out}.png")


if __name__ == "__main__":
    main()
