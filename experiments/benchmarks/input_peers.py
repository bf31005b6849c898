"""What one process of input.py measures: one of the input pipelines."""

import itertools
import os
import pathlib
import statistics
import time

BATCH, SIZE = 128, 256
QUALITY = 90  # 21 kB per image
SECONDS = 3.0  # timed, after the first batches


def dataset(scratch: pathlib.Path, encoding: str, data_dir: str = "data"):
    """Return `config.dataset` of the composed images."""
    from configs import alexnet

    config = alexnet.get_config().dataset
    config.name, config.path = "folder", str(scratch / "native")
    config.data_dir, config.encoding, config.jpeg_quality = (
        str(scratch / data_dir),
        encoding,
        QUALITY,
    )
    return config


def prepared(scratch: pathlib.Path, encoding: str) -> pathlib.Path:
    """Return the directory of the prepared set."""
    from alexnet_jax.prepare import prepare

    return prepare(dataset(scratch, encoding))


def stored_images(scratch: pathlib.Path, encoding: str) -> list[tuple[bytes, int]]:
    """Return the bytes and labels of the prepared training images."""
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(prepared(scratch, encoding))
    records = builder.as_data_source("train", decoders=skip)
    return [(bytes(r["image"]), int(r["label"])) for r in records]


def processes() -> list[int]:
    """Return this process and its children."""
    children = pathlib.Path("/proc/self/task").glob("*/children")
    return [os.getpid(), *(int(pid) for file in children for pid in file.read_text().split())]


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children so far."""
    total = 0.0
    for pid in processes():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def memory_mb() -> float:
    """Return the memory of this process and its children, shared pages counted once."""
    total = 0
    for pid in processes():
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.split("Pss:")[1].split()[0])
    return total / 1024


def timed(batches, warm: int = 3, warm_seconds: float = 0, at_least: int = 0) -> dict[str, float]:
    """Return rates and memory of an iterator of numbers of images, and when its first was there.

    What is not timed are `warm` batches, and as many as come in `warm_seconds`. Then SECONDS are,
    and `at_least` so many images.
    """
    begun = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begun
    while warm > 1 or time.perf_counter() - begun < warm_seconds:
        next(batches)
        warm -= 1
    images, wall, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - wall < SECONDS or images < at_least:
        images += next(batches)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {
        "images_per_second": images / wall,
        "images_per_cpu_second": images / cpu,
        "memory_mb": memory_mb(),
        "first_batch_seconds": first,
    }


def limit(kind: str, scratch: pathlib.Path):
    """Decoding, or copying, from memory into one buffer."""
    import numpy as np
    import simplejpeg

    if kind == "native":
        images = [p.read_bytes() for p in sorted(scratch.glob("native/train/*/*"))]
    else:
        images = [image for image, _ in stored_images(scratch, kind)][:: 4 if kind == "raw" else 1]
    buffer = np.empty(800 * 600 * 3, np.uint8)
    for image in itertools.cycle(images):
        if kind == "raw":
            buffer[: len(image)] = np.frombuffer(image, np.uint8)
        else:
            simplejpeg.decode_jpeg(image, "RGB", buffer=buffer)
        yield 1


def ours(kind: str, scratch: pathlib.Path, **options: int):
    """train_batches of this repository, with `options`: num_threads or num_workers."""
    from alexnet_jax import data

    images = data.open_dataset(prepared(scratch, kind))
    for batch in data.train_batches(images, seed=0, batch_size=BATCH, **options):
        yield len(batch["label"])


def preparing(scratch: pathlib.Path) -> dict[str, float]:
    """Making the prepared set of the composed images, once."""
    import shutil

    from alexnet_jax.prepare import prepare

    shutil.rmtree(scratch / "again", ignore_errors=True)
    number = len(list(scratch.glob("native/*/*/*")))
    wall, cpu = time.perf_counter(), cpu_seconds()
    prepare(dataset(scratch, "jpeg", "again"))
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {
        "images_per_second": number / wall,
        "images_per_cpu_second": number / cpu,
        "memory_mb": memory_mb(),
    }


def torch_decoder() -> str:
    """Return which decoder of JPEG there is beside this PyTorch: torchvision's, or Pillow's."""
    try:
        import torchvision.io  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: torchvision for another torch
        return "pillow"
    return "torchvision"


def torch(kind: str, scratch: pathlib.Path, decoder: str = "pillow"):
    """PyTorch's DataLoader with a worker for each core, and Pillow or torchvision."""
    import numpy as np
    import torch
    from PIL import Image

    folder, pattern = (
        (scratch / "native", "train/*/*") if kind == "native" else (scratch / "files", "*")
    )
    files = sorted(folder.glob(pattern))
    labels = [
        int(f.stem.split("_")[1]) if kind != "native" else int(f.parent.name[5:]) for f in files
    ]
    if kind == "raw":
        pixels = np.memmap(scratch / "raw.bin", np.uint8, "r").reshape(-1, SIZE, SIZE, 3)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            if kind == "raw":
                return torch.from_numpy(np.array(pixels[index])), labels[index]
            if decoder == "torchvision":
                from torchvision import io

                pixels_ = io.decode_jpeg(io.read_file(str(files[index])), io.ImageReadMode.RGB)
                return pixels_, labels[index]
            with Image.open(files[index], formats=("JPEG",)) as image:
                rgb = image.convert("RGB")
            if kind == "native":
                side = min(rgb.size)
                left, top = ((length - side) / 2 for length in rgb.size)
                box = (left, top, left + side, top + side)
                rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
            return torch.from_numpy(np.array(rgb)), labels[index]

    workers = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(
        Images(),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for images, _ in loader:
            yield len(images)


def tf(kind: str, scratch: pathlib.Path):
    """A tf.data pipeline over TFRecords, its parallelism that of the cores."""
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    path = scratch / f"{kind}.tfrecord"
    if not path.exists():
        raw = (scratch / "raw.bin").open("rb")
        files = sorted(
            (scratch / "files").iterdir() if kind != "native" else scratch.glob("native/train/*/*")
        )
        with tf.io.TFRecordWriter(str(path)) as writer:
            for file in files:
                image = raw.read(3 * SIZE**2) if kind == "raw" else file.read_bytes()
                label = int(file.parent.name[5:] if kind == "native" else file.stem.split("_")[1])
                example = tf.train.Example()
                example.features.feature["image"].bytes_list.value.append(image)
                example.features.feature["label"].int64_list.value.append(label)
                writer.write(example.SerializeToString())
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        fields = tf.io.parse_single_example(record, features)
        if kind == "raw":
            image = tf.reshape(tf.io.decode_raw(fields["image"], tf.uint8), (SIZE, SIZE, 3))
        else:
            image = tf.io.decode_jpeg(fields["image"], channels=3, dct_method="INTEGER_ACCURATE")
        if kind == "native":
            shape = tf.shape(image)
            side = tf.minimum(shape[0], shape[1])
            top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
            image = tf.image.crop_to_bounding_box(image, top, left, side, side)
            image = tf.image.resize(image, (SIZE, SIZE), method="bicubic", antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return image, fields["label"]

    records = tf.data.TFRecordDataset(str(path)).repeat().shuffle(1024 if kind != "raw" else 256)
    decoded = records.map(parse, num_parallel_calls=cores, deterministic=False)
    for images, _ in decoded.batch(BATCH, drop_remainder=True).prefetch(2):
        yield int(images.shape[0])


def overlap(scratch: pathlib.Path, steps: int) -> dict[str, float]:
    """Seconds of training steps with real input and with a fixed batch, in turns of four.

    A turn's first step is not counted: what was decoded ahead in a turn of the other kind, or is
    still being decoded for it, must not be either's gain or loss.
    """
    import jax

    from alexnet_jax import augment, data, parallel, state
    from alexnet_jax.programs import lowered_step, train_batches
    from alexnet_jax.setting import Setting
    from configs import alexnet

    config = alexnet.get_config()
    config.dataset, config.batch_size, config.model.num_classes = dataset(scratch, "jpeg"), 32, 10
    images = data.open_dataset(prepared(scratch, "jpeg"))
    setting = Setting(config, images, parallel.sharding(config))
    statistics_ = augment.statistics_of(images, config.augment)
    current = setting.sharding.replicate(state.initial_state(config, statistics_))
    [step] = parallel.compiled(lowered_step(setting, current, {}))
    config.num_steps = 2**31 - 1
    real = train_batches(setting, step, {}, 0)
    fixed = next(real)
    seconds: dict[str, list[float]] = {"real": [], "fixed": []}
    cpu: dict[str, list[float]] = {"real": [], "fixed": []}
    turns = -(-steps // 3)
    for i in range(2 * turns * 4):
        kind = ("real", "fixed")[i // 4 % 2]
        began, cpu_began = time.perf_counter(), time.process_time()
        batch = next(real) if kind == "real" else fixed
        current, metrics = step(current, batch)
        jax.block_until_ready(metrics)
        if i % 4:
            seconds[kind].append(time.perf_counter() - began)
            cpu[kind].append(time.process_time() - cpu_began)
    report: dict[str, float] = {"batch_size": config.batch_size, "steps_of_each": 3 * turns}
    for name, values in (("seconds", seconds), ("cpu_seconds", cpu)):
        medians = {kind: statistics.median(of_kind) for kind, of_kind in values.items()}
        report |= {f"{name}_{kind}": median for kind, median in medians.items()}
        report[f"{name}_fixed_over_real"] = medians["fixed"] / medians["real"]
    report["fastest_fixed_over_real"] = min(seconds["fixed"]) / min(seconds["real"])
    return report


def scaled(way: str, scratch: pathlib.Path) -> dict[str, float]:
    """Return what is measured of KIND/PEER/CORES, with as many decoders as cores."""
    kind, peer, cores = way.split("/")
    number = int(cores)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    if peer == "torch":
        batches = torch(kind, scratch, torch_decoder())
    elif peer == "workers":
        batches = ours(kind, scratch, num_workers=number)
    else:
        if peer == "threads_one_heap":
            import runpy

            heap = pathlib.Path(__file__).parents[2] / "alexnet_jax/host/heap.py"
            runpy.run_path(str(heap))["keep"]()  # before anything starts a thread
        batches = ours(kind, scratch, num_threads=number)
    return timed(batches, warm_seconds=1.5, at_least=16 * BATCH)


def measure(name: str, scratch: pathlib.Path, steps: int) -> dict[str, float]:
    """Return what is measured of KIND/PEER, of 'scaling/KIND/PEER/CORES', or of 'overlap'."""
    kind, _, peer = name.partition("/")
    if kind == "overlap":
        return overlap(scratch, steps)
    if kind == "scaling":
        return scaled(peer, scratch)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if (kind, peer) == ("native", "ours"):
        return preparing(scratch)
    peers = {"limit": limit, "ours": ours, "torch": torch, "tf": tf}
    batches = peers[peer](kind, scratch)
    return timed(batches, warm=200 if peer == "limit" else 6)
