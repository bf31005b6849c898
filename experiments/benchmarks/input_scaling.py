"""How the rate of the input grows with the cores: threads, worker processes, PyTorch's DataLoader.

A measurement on n cores has n threads or workers, and its own process shares the cores with them.
`threads_one_heap` are threads after `heap.keep()`, which training on a CPU calls.
"""

import argparse
import itertools
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from input_peers import SIZE, stored_images

PEERS = {
    "workers": "worker processes",
    "threads": "threads",
    "threads_one_heap": "threads, one heap",
    "torch": "PyTorch's DataLoader",
}


def report(
    options: argparse.Namespace, one: Callable[[str, pathlib.Path], dict[str, float]]
) -> dict[str, Any]:
    """Return medians of the measurements that `one` makes, by kind, peer and number of cores.

    `efficiency` is a rate over as many times the rate of one thread on one core; per CPU second it
    is the CPU time of an image in that one thread over its CPU time here.
    """
    scratch = prepare(options.pictures, options.scratch)
    sizes = _make_data(scratch, options.kinds)
    available = len(os.sched_getaffinity(0))
    powers = itertools.takewhile(lambda n: n <= available, (2**i for i in itertools.count()))
    numbers = options.cores or list(powers)
    peers = [peer for peer in PEERS if peer != "torch" or options.torch_python]
    ways = list(itertools.product(options.kinds, peers, numbers))
    runs: dict[tuple, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            runs[way].append(one("scaling/" + "/".join(map(str, way)), scratch))
            print(*way, {k: round(v, 2) for k, v in runs[way][-1].items()}, flush=True)
    results: dict[str, Any] = {}
    for (kind, peer, number), of_way in runs.items():
        found = {k: statistics.median(run[k] for run in of_way) for k in of_way[0]}
        results.setdefault(kind, {}).setdefault(peer, {})[str(number)] = found
    for of_kind in results.values():
        single = of_kind["threads"].get("1")
        for of_peer in of_kind.values():
            for number, found in of_peer.items():
                if single:
                    rate, cpu = (f"images_per{name}_second" for name in ("", "_cpu"))
                    found["efficiency"] = found[rate] / single[rate] / int(number)
                    found["efficiency_cpu"] = found[cpu] / single[cpu]
                of_peer[number] = {k: float(f"{v:.4g}") for k, v in found.items()}
    return {"rounds": options.rounds, "bytes_per_image": sizes, "results": results}


def prepare(pictures: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Return the directory where input_peers.py finds the photographs and prepares them."""
    (scratch / "scaling").mkdir(exist_ok=True)
    if not (scratch / "scaling/native").exists():
        (scratch / "scaling/native").symlink_to(pictures.resolve())
    return scratch / "scaling"


def _make_data(scratch: pathlib.Path, kinds: list[str]) -> dict[str, int]:
    """Prepare the photographs, and store them for PyTorch; return the mean bytes per image."""
    files, sizes = scratch / "files", {"raw": 3 * SIZE**2}
    if "raw" in kinds and not (scratch / "raw.bin").exists():
        with (scratch / "raw.unfinished").open("wb") as pixels:
            for image, _ in stored_images(scratch, "raw"):
                pixels.write(image)
        (scratch / "raw.unfinished").rename(scratch / "raw.bin")
    stored = stored_images(scratch, "jpeg")  # the files have the labels of raw.bin, too
    sizes["jpeg"] = round(statistics.mean(len(image) for image, _ in stored))
    if not files.exists():
        unfinished = scratch / "unfinished"
        unfinished.mkdir()
        for i, (image, label) in enumerate(stored):
            (unfinished / f"{i:05d}_{label}.jpg").write_bytes(image)
        unfinished.rename(files)
    return {kind: sizes[kind] for kind in kinds}


def plot(made: dict[str, Any], path: str) -> None:
    """Draw images per second over the cores, and what 0.9 of one core's rate for each would be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, _ = plt.subplots(1, len(made["results"]), figsize=(5.5 * len(made["results"]), 3.6))
    titles = {"jpeg": "JPEG, 256 px", "raw": "uint8, 256 px"}
    for axis, (kind, of_kind) in zip(figure.axes, made["results"].items(), strict=True):
        for peer, of_peer in of_kind.items():
            numbers = [int(number) for number in of_peer]
            rates = [found["images_per_second"] for found in of_peer.values()]
            axis.plot(numbers, rates, marker="o", label=PEERS[peer])
        single = of_kind["threads"].get("1")
        if single:
            aim = [0.9 * n * single["images_per_second"] for n in numbers]
            axis.plot(numbers, aim, "k:", label="0.9 of a single core, each")
        axis.set_title(f"{titles[kind]} ({made['bytes_per_image'][kind] / 1000:.0f} kB)")
        axis.set_xlabel("cores")
        axis.set_ylabel("images / s")
        axis.set_xticks(numbers)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
