"""Images per second: this input, PyTorch's DataLoader, tf.data, and the bare decoder as limit.

    python experiments/benchmarks/input.py --pictures=IMAGENETTE --scratch=DIR \
      --torch_python=TORCH/bin/python --tf_python=TF/bin/python \
      --out=experiments/results/input_benchmark

IMAGENETTE is a folder of photographs, `train/<class>/*`; of them 4,000 are composed that have the
sizes of ImageNet's. TORCH and TF are environments with torch and pillow, and with tensorflow-cpu. A
peer whose environment is not given is left out.

All give shuffled batches of 128 uint8 squares of 256 px with labels, and no augmentation, of

jpeg    256 px JPEG: ours from the prepared set, PyTorch from one file each with Pillow, tf.data
        from TFRecords; the limit is simplejpeg into one reused buffer, from memory;
raw     256 px uint8: PyTorch from one memory map; the limit is a copy from memory;
native  JPEG of ImageNet's sizes: the peers decode, resize and crop them in every epoch; ours does
        so once, and is timed preparing: with encoding and writing. The limit is decoding alone.

Each measurement is a process of its own on one core, in turns, `--rounds` times; the medians are
reported: images per second of wall time and per second of CPU time over all its processes, which
other programs on the machine disturb less, and the memory (PSS) of all its processes. The files are
in the page cache. Last, training steps of alexnet on all cores with real input and with one batch
that stays on the device, in turns.
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

from input_peers import BATCH, SIZE, measure, stored_images

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ("limit", "ours", "torch", "tf")
# Width and height of ImageNet's training images: mostly 500 x 375, some larger, some smaller.
SIZES = ((500, 375), (500, 375), (500, 333), (375, 500), (500, 500), (640, 480), (800, 600))


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=pathlib.Path)
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("--torch_python")
    parser.add_argument("--tf_python")
    parser.add_argument("--rounds", type=int, default=5)
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


def run_one(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Measure `name` in a process of its own."""
    peer = name.partition("/")[2]
    python = {"torch": options.torch_python, "tf": options.tf_python}.get(peer, sys.executable)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, f"--only={name}", f"--scratch={options.scratch}"]
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


def main() -> None:
    """Measure everything and write the report and the plot."""
    options = arguments()
    if options.only:
        print(json.dumps(measure(options.only, options.scratch, options.steps)))
        return
    sys.path.insert(0, str(ROOT))
    options.scratch.mkdir(parents=True, exist_ok=True)
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
    report = {
        "command": "python experiments/benchmarks/input.py --pictures=IMAGENETTE --scratch=DIR"
        " --torch_python=TORCH/bin/python --tf_python=TF/bin/python"
        f" --rounds={options.rounds} --steps={options.steps}"
        " --out=experiments/results/input_benchmark",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": next(
            line.split(":")[1].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "cores_a_measurement": 1,
        "batch_size": BATCH,
        "rounds": options.rounds,
        "versions": versions(options),
        "bytes_a_picture": sizes,
        "results": results,
        "overlap": run_one(options, "overlap"),
    }
    pathlib.Path(f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, f"{options.out}.png")
    print(json.dumps({"results": results, "overlap": report["overlap"]}, indent=1))


if __name__ == "__main__":
    main()
