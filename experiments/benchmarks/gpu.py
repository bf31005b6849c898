"""Everything that a GPU has to answer, in one call: step, loop, start, input, and PyTorch beside.

    python experiments/benchmarks/gpu.py --out=OUT [--torch_python=TORCH/bin/python] [--seconds=540]

OUT is a folder. The stages run one after the other, those that are worth most first, each a process
of its own with a limit of its own, and none for longer than is left of --seconds. A stage writes
OUT/STAGE.json and OUT/STAGE.log, and then OUT/gpu.json says how it ended and OUT/gpu.png is drawn
again. The same command runs what is missing: a stage that succeeded is left out, one that failed or
ran out of time is run again.

step_1024, step_128   step.py, beside compiled PyTorch (at 128 with CUDA graphs)
fused                 fused.py, where NVIDIA Warp is installed
loop_jpeg, loop_raw   loop.py with 1,024 images per batch, decoded on the host, or stored as bytes
loop_torch            loop_torch.py: PyTorch, DataLoader with a worker per core
loop_cached           run.py's fastest: 128 images per batch, the set in the device's memory
start                 start.py with each choice of what XLA searches
copy, scaling         input.py: a batch to the device; images per second on 1, 2, 4, ... cores

The images are --pictures, a folder with train/<class>/* and val/<class>/*, or composed: 4,096 JPEG
files of 256 px. A machine without a network needs the packages as files. On one that has a network
and the same Python and architecture:

    pip download --only-binary=:all: --no-deps -d wheels -r FILE

where FILE names what the machine lacks, with versions (say tensorflow-datasets, array_record,
ml_collections, simplejpeg, tensorboardX, warp-lang and what `pip check` then finds missing); there

    pip install --no-index --no-deps --find-links=wheels wheels/*.whl

--small runs the same stages with the smallest shapes, to see on a CPU that they work.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEAST = 20  # seconds that must be left to begin a stage
CLASSES = 8
TINY = (
    "--config.batch_size=8",
    "--config.model.features=(8,8,8,8,8)",
    "--config.model.hidden=(8,8)",
    "--config.dtype=float32",
)


def compose(folder: pathlib.Path, number: int) -> None:
    """Write `number` JPEG files of 256 px, a sixteenth of them for validation."""

    def one(i: int) -> None:
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8))
        pixels = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(pixels + random.integers(-12, 13, pixels.shape), 0, 255)
        split = "val" if i % 16 == 15 else "train"
        file = folder / split / f"class{i // 16 % CLASSES}" / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file, quality=85)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(one, range(number)))


def stages(options: argparse.Namespace, images: pathlib.Path) -> dict[str, tuple[int, list[str]]]:
    """Return the limit in seconds and the command of each stage, those of most value first."""
    small, cores = options.small, len(os.sched_getaffinity(0))
    torch = [f"--torch_python={options.torch_python}"] if options.torch_python else []
    data = [
        "--config.dataset.name=folder",
        f"--config.dataset.path={images}",
        f"--config.dataset.data_dir={options.out / 'data'}",
        f"--config.model.num_classes={len(list((images / 'train').iterdir()))}",
    ]

    def step(batch: int, peer: str) -> list[str]:
        turns = ["--steps=20", "--rounds=5", "--restarts=1"]
        peers = ["--peers", peer if torch else "naive"]
        size = ["--batches", str(batch), "--dtype=bfloat16"]
        if small:
            turns, size = ["--steps=1", "--rounds=2", "--restarts=1"], ["--batches", "2"]
            peers = ["--peers", "torch" if torch else "naive"]
        return [sys.executable, "step.py", *torch, *size, *turns, *peers]

    def loop(batch: int, *fields: str) -> list[str]:
        turns = ["--steps=2", "--rounds=2"] if small else ["--steps=20", "--rounds=3"]
        sizes = TINY if small else ("--config.dtype=bfloat16", f"--config.batch_size={batch}")
        recipe = ["--config=configs/alexnet.py", *sizes, *data, *fields]
        return [sys.executable, "loop.py", *turns, *recipe]

    limit = 100 if small else 0
    found = {
        "step_1024": (200, step(1024, "torch_compile")),
        "loop_jpeg": (150, loop(1024)),
        "loop_torch": (120, _loop_torch(options, images, cores)),
        "step_128": (200, step(128, "torch_compile_graphs")),
        "fused": (180, [sys.executable, "fused.py", *(["--check"] if small else [])]),
        "start": (300, _start(small, data)),
        "loop_raw": (100, loop(1024, "--config.dataset.encoding=raw")),
        "copy": (60, [sys.executable, "input.py", "copy", "--rounds=3"]),
        "loop_cached": (120, loop(128, "--config.dataset.cache=device")),
        "scaling": (240, _scaling(options, images, torch, cores)),
    }
    if not torch:
        del found["loop_torch"]
    if importlib.util.find_spec("warp") is None:
        del found["fused"]
    return {name: (max(limit, seconds), command) for name, (seconds, command) in found.items()}


def _loop_torch(options: argparse.Namespace, images: pathlib.Path, cores: int) -> list[str]:
    command = [str(options.torch_python), "loop_torch.py", f"--images={images}"]
    if options.small:
        return [*command, "--batch=2", "--workers=1", "--steps=1", "--rounds=2", "--no-compile"]
    return [*command, f"--workers={cores}"]


def _start(small: bool, data: list[str]) -> list[str]:
    sizes = TINY if small else ("--config.dtype=bfloat16", "--config.batch_size=1024")
    run = " ".join(["configs/alexnet.py", *sizes, *data])
    choices = ["unsearched"] if small else ["searched", "no_fusions", "unsearched", "unchecked"]
    steps = 2 if small else 200
    command = [sys.executable, "start.py", f"--run={run}", "--rounds=1", f"--steps={steps}"]
    return [*command, "--choices", *choices]


def _scaling(
    options: argparse.Namespace, images: pathlib.Path, torch: list[str], cores: int
) -> list[str]:
    numbers = ["1"] if options.small else [str(n) for n in (1, 4, 16) if n <= cores]
    scratch = f"--scratch={options.out / 'scratch'}"
    command = [sys.executable, "input.py", "scaling", f"--pictures={images}", scratch]
    return [*command, *torch, "--rounds=1", "--kinds", "jpeg", "--cores", *numbers]


def run(name: str, command: list[str], out: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Run a stage, and end it with all its processes after so many seconds; say how it ended."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "cache")}
    python, script, *arguments = command
    began = time.perf_counter()
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [python, str(HERE / script), *arguments, f"--out={out / name}"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = "succeeded" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended = "ran out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {"ended": ended, "seconds": round(time.perf_counter() - began, 1)}


def rates(out: pathlib.Path) -> dict[str, float]:
    """Return the images per second that the stages of `out` have measured, as far as they came."""
    found = {}
    for path in sorted(out.glob("step_*.json")):
        for size, peers in json.loads(path.read_text())["batches"].items():
            for peer, row in peers.items():
                found[f"step {size}, {peer}"] = row["pictures_per_second"]
    for path in sorted(out.glob("loop_*.json")):
        record = json.loads(path.read_text())
        for way in ("step", "written" if "written" in record["milliseconds"] else "fed"):
            milliseconds = record["milliseconds"][way][1]
            found[f"{path.stem}, {way}"] = 1e3 * record["batch_size"] / milliseconds
    return found


def plot(found: dict[str, float], path: pathlib.Path) -> None:
    """Draw the rates as bars, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(found)))
    names = list(found)[::-1]
    colours = ["#E69F00" if "torch" in name else "#0072B2" for name in names]
    bars = axis.barh(names, [found[name] for name in names], color=colours)
    axis.bar_label(bars, [f"{found[name]:,.0f}" for name in names], fontsize=8, padding=2)
    axis.set(xlabel="images / s")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument("--torch_python", help="Python with torch; may be this one")
    parser.add_argument("--pictures", type=pathlib.Path, help="default: composed")
    parser.add_argument("--seconds", type=float, default=540, help="for all; default: 540")
    parser.add_argument("--stages", nargs="+", help="default: all")
    parser.add_argument("--small", action="store_true", help="the smallest shapes")
    options = parser.parse_args()
    began = time.monotonic()
    options.out = options.out.resolve()
    (options.out / "cache").mkdir(mode=0o700, parents=True, exist_ok=True)
    images = (options.pictures or options.out / "images").resolve()
    if not (images / "train").exists():
        compose(images, 256 if options.small else 4096)
    known = stages(options, images)
    for name in set(options.stages or known) - set(known):
        parser.error(f"--stages {name}: there are {', '.join(known)}")
    path = options.out / "gpu.json"
    report = json.loads(path.read_text()) if path.exists() else {"stages": {}}
    report["date"] = time.strftime("%Y-%m-%d")
    for name in options.stages or known:
        if report["stages"].get(name, {}).get("ended") == "succeeded":
            continue
        limit, command = known[name]
        left = options.seconds - (time.monotonic() - began)
        if left < LEAST:
            print(f"{name}: no time is left; the same command continues", flush=True)
            continue
        report["stages"][name] = run(name, command, options.out, min(limit, left))
        report["images_per_second"] = {k: round(v) for k, v in rates(options.out).items()}
        path.write_text(json.dumps(report, indent=1) + "\n")
        plot(report["images_per_second"], options.out / "gpu.png")
        print(name, json.dumps(report["stages"][name]), flush=True)


if __name__ == "__main__":
    main()
