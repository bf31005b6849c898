"""Batches: pure functions of (seed, step), every example once per epoch, on any processes."""

import itertools
import json
import os
import socket
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import (
    blank_batch,
    buffers,
    eval_batches,
    open_dataset,
    to_devices,
    train_batches,
)
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare
from tests import runs

TRAIN, VAL, SIZE = 22, 10, 6


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that prepares 22 and 10 images; all pixels of image i have the value i."""
    root = tmp_path_factory.mktemp("numbers")
    for split, numbers in (("train", range(TRAIN)), ("val", range(100, 100 + VAL))):
        for i in numbers:
            folder = root / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIZE, SIZE, 3), i, np.uint8)).save(folder / f"{i:03d}.png")

    def prepared(data_dir, encoding="raw"):
        fields = {"name": "folder", "path": str(root), "data_dir": str(data_dir)}
        fields |= {"val_fraction": 0.2, "image_size": SIZE, "encoding": encoding}
        fields |= {"jpeg_quality": 95, "on_error": "raise"}
        return prepare(ml_collections.ConfigDict(fields))

    return prepared


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def dataset(request, make, tmp_path_factory):
    return open_dataset(make(tmp_path_factory.mktemp("data"), request.param))


def take(batches, number):
    return list(itertools.islice(batches, number))


def numbers(batch):
    """Return which images a batch holds."""
    return batch["image"][:, 0, 0, 0].tolist()


def stream(dataset, seed, length, **options):
    """Return the first images of training, as numbers."""
    steps = -(-length // 8)
    batches = take(train_batches(dataset, seed=seed, batch_size=8, **options), steps)
    return [n for batch in batches for n in numbers(batch)][:length]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_dataset_says_what_was_prepared(dataset):
    assert (dataset.num_train, dataset.num_val, dataset.image_size) == (TRAIN, VAL, SIZE)
    assert dataset.class_names == ("class0", "class1")
    assert dataset.mean_image.dtype == np.float32
    np.testing.assert_allclose(dataset.mean_image, np.full((SIZE, SIZE, 3), 10.5))
    assert dataset.eigenvectors.shape == (3, 3)
    np.testing.assert_allclose(dataset.eigenvalues, [0, 0, 3 * np.var(range(TRAIN))], atol=1e-9)


def test_batches_hold_the_images_and_their_labels(dataset):
    for batch in take(train_batches(dataset, seed=0, batch_size=8), 5):
        assert (batch["image"].shape, batch["image"].dtype) == ((8, SIZE, SIZE, 3), np.uint8)
        assert (batch["label"].shape, batch["label"].dtype) == ((8,), np.int32)
        assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
        assert batch["label"].tolist() == [n % 2 for n in numbers(batch)]


def test_any_step_is_reached_directly(dataset):
    batches = take(train_batches(dataset, seed=3, batch_size=8), 12)
    for step in (1, 2, 7, 11):
        first = next(train_batches(dataset, seed=3, batch_size=8, start_step=step))
        assert_same(first, batches[step])


def test_a_far_step_is_as_fast_as_the_first(dataset):
    batch = next(train_batches(dataset, seed=0, batch_size=8, start_step=10**12))
    assert len(set(numbers(batch))) >= 4  # it spans at most two epochs


def test_number_of_threads_changes_nothing(dataset):
    one = take(train_batches(dataset, seed=0, batch_size=8, num_threads=1), 6)
    for a, b in zip(one, train_batches(dataset, seed=0, batch_size=8, num_threads=5), strict=False):
        assert_same(a, b)


def test_every_epoch_holds_every_example_exactly_once(dataset):
    order = stream(dataset, 0, 4 * TRAIN)
    for epoch in range(4):
        assert sorted(order[epoch * TRAIN : (epoch + 1) * TRAIN]) == list(range(TRAIN))


def test_orders_of_all_seeds_and_epochs_differ(dataset):
    """Also seed s + 1 from the next epoch of seed s, which a sum of the two would confuse."""
    orders = set()
    for seed in range(4):
        order = stream(dataset, seed, 3 * TRAIN)
        orders |= {tuple(order[e * TRAIN : (e + 1) * TRAIN]) for e in range(3)}
    assert len(orders) == 12


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_together_hold_the_batch_of_one_process(dataset, count):
    whole = take(train_batches(dataset, seed=1, batch_size=8, start_step=2), 4)
    shares = [
        train_batches(
            dataset, seed=1, batch_size=8, start_step=2, process_index=p, process_count=count
        )
        for p in range(count)
    ]
    for batch, *parts in zip(whole, *shares, strict=False):
        joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        assert_same(joined, batch)


def test_memory_does_not_grow_with_the_number_of_batches(dataset, monkeypatch):
    made = []
    aligned = buffers._aligned
    monkeypatch.setattr(buffers, "_aligned", lambda size: made.append(size) or aligned(size))
    for _ in zip(range(60), train_batches(dataset, seed=0, batch_size=8), strict=False):
        pass
    assert len(made) <= 5  # the caller's, one that it gets, and those that are being decoded


def test_batches_that_are_kept_do_not_change(dataset):
    batches = take(train_batches(dataset, seed=0, batch_size=8), 40)
    for step, batch in enumerate(batches):
        if step % 7 == 0:
            again = next(train_batches(dataset, seed=0, batch_size=8, start_step=step))
            assert_same(again, batch)


def test_each_batch_is_being_copied_before_the_previous_one_is_used():
    asked = []

    def batches():
        for step in range(4):
            asked.append(step)
            yield {"label": np.full(2, step, np.int32)}

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for step, batch in enumerate(to_devices(batches(), {"label": device})):
        assert isinstance(batch["label"], jax.Array)
        assert batch["label"].tolist() == [step, step]
        assert asked[-1] == min(step + 1, 3)
    assert step == 3


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 16])
def test_evaluation_sees_every_example_once_in_order(dataset, batch_size):
    batches = list(eval_batches(dataset, batch_size=batch_size))
    assert len(batches) == -(-VAL // batch_size)
    seen = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, SIZE, SIZE, 3)
        assert (batch["label"].dtype, batch["mask"].dtype) == (np.int32, bool)
        seen += [n for n, real in zip(numbers(batch), batch["mask"], strict=True) if real]
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
    assert seen == [*range(100, 100 + VAL, 2), *range(101, 100 + VAL, 2)]  # class after class


def test_evaluation_processes_together_hold_the_batches_of_one(dataset):
    whole = eval_batches(dataset, batch_size=8)
    shares = [
        eval_batches(dataset, batch_size=8, process_index=p, process_count=4) for p in range(4)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_same({key: np.concatenate([part[key] for part in parts]) for key in batch}, batch)


def test_training_images_can_be_evaluated_too(dataset):
    batches = eval_batches(dataset, batch_size=7, split="train")
    assert sum(int(batch["mask"].sum()) for batch in batches) == TRAIN


def test_blank_batch_looks_like_a_training_batch(dataset):
    blank, real = blank_batch(dataset, 8), next(train_batches(dataset, seed=0, batch_size=8))
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {
        k: (v.shape, v.dtype) for k, v in real.items()
    }


@pytest.mark.parametrize("batches", [lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches])
@pytest.mark.parametrize("batch_size", [6, 0])
def test_batch_that_processes_do_not_divide_is_refused(dataset, batches, batch_size):
    with pytest.raises(InputError, match=f"batch_size={batch_size} .* 4 processes"):
        batches(dataset, batch_size=batch_size, process_count=4)


# --- damage -----------------------------------------------------------------------------------


def shard(path, split):
    [file] = path.glob(f"pictures-{split}.array_record-*")
    return file


@pytest.fixture
def whole(make, tmp_path):
    return make(tmp_path)


def test_a_directory_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"nothing is not a complete prepared data set .*remove it"
    ):
        open_dataset(tmp_path / "nothing")


def test_other_format_version_is_refused(whole):
    statistics = json.loads((whole / "statistics.json").read_text())
    (whole / "statistics.json").write_text(json.dumps(statistics | {"format": 99}))
    with pytest.raises(InputError, match=r"format 99, this version reads 2.*remove it"):
        open_dataset(whole)


@pytest.mark.parametrize(
    "name", ["statistics.json", "mean_image.npy", "dataset_info.json", "features.json", "shard"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_set_with_a_damaged_file_is_refused(whole, name, damage):
    file = shard(whole, "val") if name == "shard" else whole / name
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"not a complete prepared data set .*remove it"):
        open_dataset(whole)


@pytest.mark.parametrize("split", ["train", "val"])
def test_corrupt_record_reaches_the_caller_by_name(whole, split):
    dataset = open_dataset(whole)
    file = shard(whole, split)
    content = bytearray(file.read_bytes())
    position = len(content) // 2
    content[position : position + 8] = bytes(
        byte ^ 255 for byte in content[position : position + 8]
    )
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"record \d+ of .*{file.name} cannot be read") as caught:
        if split == "train":
            take(train_batches(dataset, seed=0, batch_size=4), 6)
        else:
            list(eval_batches(dataset, batch_size=4))
    assert "\n" not in str(caught.value)


def test_tensorflow_is_not_imported(whole):
    code = (
        "import sys; from alexnet_jax import data\n"
        f"dataset = data.open_dataset({str(whole)!r})\n"
        "next(data.train_batches(dataset, seed=0, batch_size=2))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    root = runs.ROOT
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


TWO_PROCESSES = """
import itertools, sys, jax, numpy as np
from alexnet_jax import data
from alexnet_jax.data import to_devices
address, process, path = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
mesh = jax.make_mesh((4,), ("batch",))
split, whole = (jax.NamedSharding(mesh, jax.P(*axis)) for axis in (("batch",), ()))
batches = data.train_batches(
    data.open_dataset(path), seed=5, batch_size=8, start_step=3,
    process_index=jax.process_index(), process_count=jax.process_count(),
)
collect = jax.jit(lambda image: image[:, 0, 0, 0], out_shardings=whole)
for batch in itertools.islice(to_devices(batches, {"image": split, "label": split}), 3):
    assert batch["image"].shape[0] == 8 and len(batch["image"].addressable_shards) == 2
    print(*collect(batch["image"]).addressable_data(0), flush=True)
"""


def test_two_hosts_put_the_batch_of_one_on_their_devices(whole):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(i), str(whole)],
            cwd=runs.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [host.communicate(timeout=120)[0].splitlines() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    alone = take(train_batches(open_dataset(whole), seed=5, batch_size=8, start_step=3), 3)
    expected = [" ".join(map(str, numbers(batch))) for batch in alone]
    for lines in outputs:
        assert [line for line in lines if "Gloo" not in line] == expected
