"""A training loop of PyTorch's, to set beside loop.py: DataLoader, torchvision's decoder, compiled.

    TORCH/bin/python experiments/benchmarks/loop_torch.py --images=IMAGES --batch=1024 --out=OUT

TORCH is an environment with torch, torchvision and pillow; without torchvision Pillow decodes.
IMAGES has JPEG files of 256 px in train/<class>/. The network and its optimizer are those of
step.py: channels_last, autocast to bfloat16, torch.compile. --workers processes decode, crop to 227
px and reflect; what arrives is uint8 in pinned memory, and the mean is subtracted on the device. In
turns, as in loop.py: `step` on one batch again and again, `fed` with the next batch each time, and
`batches` alone. Writes OUT.json: medians and quartiles in milliseconds.
"""

import argparse
import io
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from step_peers import DECAY, MOMENTUM, RATE, SIDE, torch_network

try:
    from torchvision.io import decode_jpeg
except Exception:  # not installed, or built for another torch
    decode_jpeg = None
MEAN = 118.0


class Crops(torch.utils.data.Dataset):
    """Random crops (3, 227, 227) uint8 of the files of a folder, and the numbers of classes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.files = sorted((folder / "train").glob("*/*"))
        classes = sorted({file.parent.name for file in self.files})
        self.labels = [classes.index(file.parent.name) for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        stored = self.files[index].read_bytes()
        if decode_jpeg:
            image = decode_jpeg(torch.frombuffer(bytearray(stored), dtype=torch.uint8))
        else:
            pixels = np.array(Image.open(io.BytesIO(stored), formats=("JPEG",)).convert("RGB"))
            image = torch.from_numpy(pixels).permute(2, 0, 1)
        y, x = (int(torch.randint(side - SIDE + 1, ())) for side in image.shape[1:])
        image = image[:, y : y + SIDE, x : x + SIDE]
        return (image.flip(2) if torch.rand(()) < 0.5 else image), self.labels[index]


def measured(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return seconds of a step in each round, of each of the three ways."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    loader = torch.utils.data.DataLoader(
        Crops(options.images),
        options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        pin_memory=device == "cuda",
        persistent_workers=options.workers > 0,
    )
    network = torch_network().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), RATE, MOMENTUM, weight_decay=DECAY, fused=device == "cuda"
    )
    criterion = torch.nn.CrossEntropyLoss()

    def loss(images: Any, labels: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return criterion(network(images.float() - MEAN), labels)

    compiled = torch.compile(loss) if options.compile else loss

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            for images, labels in loader:
                images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(device, non_blocking=True)

    def step(images: Any, labels: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        value = compiled(images, labels)
        value.backward()
        optimizer.step()
        return value

    following = batches()
    same = next(following)
    ways: dict[str, Callable[[], Any]] = {
        "step": lambda: step(*same),
        "fed": lambda: step(*next(following)),
        "batches": lambda: next(following)[1].sum(),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for each in range(options.rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            for _ in range(options.steps):
                result = way()
            result.item()
            if each:  # the first round compiles and warms up
                times[name].append((time.perf_counter() - begun) / options.steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="in one turn")
    parser.add_argument("--rounds", type=int, default=3, help="at least 2")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", required=True, help="path without extension")
    options = parser.parse_args()
    times = measured(options)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "decoder": "torchvision" if decode_jpeg else "pillow",
        "batch_size": options.batch,
        "workers": options.workers,
        "compiled": options.compile,
        "milliseconds": {
            name: [float(f"{1e3 * x:.4g}") for x in statistics.quantiles(each, n=4)]
            for name, each in times.items()
        },
    }
    print(json.dumps(record, indent=1))
    pathlib.Path(f"{options.out}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
