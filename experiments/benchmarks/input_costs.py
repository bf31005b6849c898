"""The CPU time of an image, and where it goes: what threads and worker processes would scale with.

Microseconds of CPU time per image, which other programs on the machine disturb less than time by
the clock; medians of rounds in which all take turns, in one process:

read, parse, decode   the parts, one after the other in one thread; `decode` of uint8 is a copy;
threads_N, workers_N  batches of `train_batches` with so many of them, all processes together;
of_workers_N_here     of that, what this process takes;
start_N               how N workers start: seconds to the first batch, and their CPU time until the
                      three batches are decoded that are under way then.
"""

import itertools
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

from input_peers import BATCH, prepared, processes

IMAGES = 8 * BATCH  # per measurement


def measured(scratch: pathlib.Path, kind: str, rounds: int) -> dict[str, Any]:
    """Return all of it for the images that are prepared in `scratch`, as 'jpeg' or as 'raw'."""
    from alexnet_jax import data

    directory = prepared(scratch, kind)
    ways: dict[str, Iterator] = {}
    starts, kept = {}, []
    for number in (1, 2):
        images = data.open_dataset(directory)
        kept.append(images)
        options: dict[str, Any] = {"seed": 0, "batch_size": BATCH}
        ways[f"threads_{number}"] = data.train_batches(images, num_threads=number, **options)
        before, begun = _cpu(), time.perf_counter()
        workers = data.train_batches(images, num_workers=number, **options)
        next(workers)
        starts[f"start_{number}"] = {
            "seconds_to_the_first_batch": round(time.perf_counter() - begun, 2),
            "cpu_seconds_with_three_batches": round(sum(_cpu().values()) - sum(before.values()), 3),
        }
        ways[f"workers_{number}"] = workers
    for batches in ways.values():
        for _ in range(6):
            next(batches)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, seconds in _parts(directory, kind).items():
            times.setdefault(name, []).append(seconds)
        for name, batches in ways.items():
            before = _cpu()
            for _ in range(IMAGES // BATCH):
                next(batches)
            spent = {pid: seconds - before[pid] for pid, seconds in _cpu().items()}
            times.setdefault(name, []).append(sum(spent.values()) / IMAGES)
            if name.startswith("workers"):
                here = spent[processes()[0]] / IMAGES
                times.setdefault(f"of_{name}_here", []).append(here)
    return {
        "microseconds_per_image": {
            name: [round(1e6 * each, 1) for each in statistics.quantiles(of_name, n=4)]
            for name, of_name in times.items()
        }
    } | starts


def _parts(directory: pathlib.Path, kind: str) -> dict[str, float]:
    """Return CPU seconds per image of reading a record, parsing it, and decoding it."""
    import numpy as np
    import simplejpeg
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    readers = [
        ArrayRecordReader(
            str(path),
            options="readahead_buffer_size:0,max_parallelism:0",
            file_reader_buffer_size=32 << 10,
        )
        for path in sorted(directory.glob("pictures-train.array_record-*"))
    ]
    random = np.random.default_rng(0)
    picked = [readers[i] for i in random.integers(len(readers), size=IMAGES)]
    batch = np.zeros((BATCH, 256, 256, 3), np.uint8)
    found = dict.fromkeys(("read", "parse", "decode"), 0.0)
    for row, reader in zip(itertools.cycle(range(BATCH)), picked, strict=False):
        index = int(random.integers(reader.num_records()))
        marks = [time.thread_time()]
        [record] = reader.read(index, index + 1)
        marks.append(time.thread_time())
        image = tf_example_pb2.Example.FromString(record).features.feature["image"]
        content = image.bytes_list.value[0]
        marks.append(time.thread_time())
        if kind == "jpeg":
            simplejpeg.decode_jpeg(content, "RGB", buffer=batch[row])
        else:
            batch[row] = np.frombuffer(content, np.uint8).reshape(256, 256, 3)
        marks.append(time.thread_time())
        for name, (a, b) in zip(found, itertools.pairwise(marks), strict=True):
            found[name] += (b - a) / IMAGES
    return found


def _cpu() -> dict[int, float]:
    """Return the CPU seconds of this process and of its workers, which each have one busy thread.

    They are taken when nobody has worked for half a second: what is decoded ahead is counted.
    """
    before: dict[int, float] = {}
    while True:
        own, *workers = processes()
        found = {own: time.process_time()}
        for pid in workers:
            nanoseconds = pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]
            found[pid] = int(nanoseconds) / 1e9
        if found.keys() == before.keys() and all(found[i] - before[i] < 1e-2 for i in found):
            return found
        before = found
        time.sleep(0.5)
