"""Damage: a truncated shard, a flipped byte, a record that is not an image; and never a hang."""

import json
import pathlib
import shutil
import threading

import ml_collections
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from alexnet_jax import modes
from alexnet_jax.data import eval_batches, open_dataset, train_batches, train_records
from alexnet_jax.data.records import Records
from alexnet_jax.data.stored_images import Stored
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare, shards, stored_set
from alexnet_jax.prepare.merge import statistics_sha256
from alexnet_jax.train import train_and_evaluate
from tests import runs

TRAIN, VAL, SIZE = 220, 110, 16
IMAGES_PER_SHARD = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of 220 and 110 images; all pixels of image i have the value i."""
    root = tmp_path_factory.mktemp("numbers")
    for split, number in (("train", TRAIN), ("val", VAL)):
        (root / split / "only").mkdir(parents=True)
        for i in range(number):
            pixels = np.full((SIZE, SIZE, 3), i, np.uint8)
            Image.fromarray(pixels).save(root / split / "only" / f"{i:03d}.png")
    return root


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
    def prepared(encoding="raw", images_per_shard=IMAGES_PER_SHARD):
        monkeypatch.setattr(stored_set, "SHARD_BYTES", images_per_shard * 3 * SIZE**2)
        fields = {"name": "folder", "path": str(folder), "data_dir": str(tmp_path)}
        fields |= {"val_fraction": 0.2, "image_size": SIZE, "encoding": encoding}
        fields |= {"jpeg_quality": 95, "on_error": "raise"}
        return prepare(ml_collections.ConfigDict(fields))

    return prepared


def shard(path, index, split="train"):
    return sorted(path.glob(f"pictures-{split}.array_record-*"))[index]


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def damage(file, index):
    """Replace a record by one that ArrayRecord accepts and that does not hold an image."""
    reader = ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    records[index] = records[index][:20] + b"not an image"
    writer = ArrayRecordWriter(str(file), shards.RECORD_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()


def epoch(dataset, *, batch_size=10, process_count=1, **options):
    """Return the images of one training epoch, as numbers, in the order of the global batches."""
    shares = [
        train_batches(
            dataset,
            seed=0,
            batch_size=batch_size,
            process_index=p,
            process_count=process_count,
            **options,
        )
        for p in range(process_count)
    ]
    batches = [[next(share) for share in shares] for _ in range(TRAIN // batch_size)]
    return [int(n) for parts in batches for part in parts for n in part["image"][:, 0, 0, 0]]


def test_a_flipped_byte_anywhere_is_named_or_changes_nothing(make):
    path = make(images_per_shard=TRAIN)
    file = shard(path, 0)
    whole, records = file.read_bytes(), open_dataset(path).records["train"]
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    found = 0
    for position in range(5, len(whole), len(whole) // 50):
        flip(file, position)
        damaged = open_dataset(path).records["train"]
        for index in range(TRAIN):
            try:
                damaged.read(index, image)
                assert (image == index).all()
            except InputError as error:
                assert f"record {index} of {file} cannot be read" in str(error)
                found += 1
        file.write_bytes(whole)
    assert found > 10
    assert records.read(3, image) == 0


def test_a_record_that_is_not_an_image_is_named_with_the_remedy(make):
    path = make()
    damage(shard(path, 4), 7)
    with pytest.raises(InputError) as caught:
        epoch(open_dataset(path))
    for part in (path.name, "record 7 of ", "00004-of-", "on_error=skip"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_decodes_with_a_warning_is_damage(make, tmp_path):
    """Pillow would fill the missing half with grey."""
    reader = ArrayRecordReader(str(shard(make("jpeg"), 0)))
    [record] = reader.read([0])
    end = record.rindex(b"\xff\xd9")
    writer = ArrayRecordWriter(str(tmp_path / "broken"), shards.RECORD_OPTIONS)
    writer.write(record[: end - 4] + b"\xff\xd9" * 3)  # as long as before, but its image is not
    writer.close()
    records = Records(Stored([(str(tmp_path / "broken"), 1)], SIZE, jpeg=True))
    with pytest.raises(InputError, match=r"record 0 of .*broken cannot be read"):
        records.read(0, np.empty((SIZE, SIZE, 3), np.uint8))


def test_a_truncated_shard_is_named_when_it_is_opened(make):
    path = make()
    file = shard(path, 2)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{path} .*shard {file.name} has .* of its .* records 0"):
        open_dataset(path)


def test_skipped_records_are_replaced_by_the_next_and_counted(make, capsys):
    path = make()
    whole = epoch(open_dataset(path))
    damage(shard(path, 0), 5)
    damage(shard(path, 1), 10)  # record 21; the next is in another shard
    dataset = open_dataset(path, "skip")
    expected = [{5: 6, 21: 22}.get(number, number) for number in whole]
    assert epoch(dataset) == expected
    assert dataset.num_damaged == 2
    assert epoch(dataset, num_threads=1, batch_size=22, process_count=2) == expected
    assert dataset.num_damaged == 2, "a record counts once"
    assert capsys.readouterr().err.count("skipped: record") == 2


def test_the_next_after_the_last_record_is_the_first(make):
    path = make()
    damage(shard(path, -1, "val"), -1)
    batches = list(eval_batches(open_dataset(path, "skip"), batch_size=50))
    assert [len(batch["label"]) for batch in batches] == [50] * 3
    assert sum(int(batch["mask"].sum()) for batch in batches) == VAL
    assert batches[-1]["image"][VAL % 50 - 1, 0, 0, 0] == 0


def test_more_than_one_percent_damaged_is_refused(make):
    path = make()
    for index in (1, 2, 3):
        damage(shard(path, index), 0)
    with pytest.raises(InputError, match=r"more than 1% of the 220 records are damaged.*record 0"):
        epoch(open_dataset(path, "skip"))


def test_a_lost_shard_is_skipped_where_it_is_less_than_one_percent(make):
    path = make(images_per_shard=1)
    shard(path, 100).write_bytes(b"")
    shard(path, 150).unlink()
    dataset = open_dataset(path, "skip")
    assert sorted(epoch(dataset)) == sorted([*({*range(TRAIN)} - {100, 150}), 101, 151])
    assert dataset.num_damaged == 2


def test_damage_ends_the_iteration_and_its_threads(make):
    path = make()
    for index in range(20):
        damage(shard(path, index), 0)
    batches = train_batches(open_dataset(path), seed=0, batch_size=110, num_threads=3)
    with pytest.raises(InputError):
        list(batches)
    with pytest.raises(StopIteration):
        next(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(timeout=30)
            assert not thread.is_alive()


def test_any_exception_in_a_thread_ends_the_iteration(make, monkeypatch):
    dataset = open_dataset(make())

    def die(index, image):
        raise MemoryError("no more")

    monkeypatch.setattr(dataset.records["train"].images, "read", die)
    with pytest.raises(MemoryError, match="no more"):
        next(train_batches(dataset, seed=0, batch_size=10))


def test_damaged_statistics_are_refused(make):
    path = make()
    flip(path / "mean_image.npy", 500)
    with pytest.raises(InputError, match=r"mean_image\.npy does not match its checksum"):
        open_dataset(pathlib.Path(path))


def test_a_run_that_damage_stopped_resumes_with_skip_and_says_what_it_skipped(
    config, data_dir, tmp_path
):
    shutil.copytree(data_dir, tmp_path / "data")
    config.dataset.data_dir = str(tmp_path / "data")
    config.num_steps = 1
    whole = open_dataset(prepare(config.dataset))
    [first] = next(train_records(whole, seed=config.seed, batch_size=1))["record"]
    [file] = (tmp_path / "data").rglob("pictures-train.array_record-00000-of-00001")
    damage(file, first)
    directory = prepare(config.dataset)
    described = json.loads((directory / "statistics.json").read_text())
    described["files"][file.name]["bytes"] = file.stat().st_size
    described["sha256"] = statistics_sha256(described)
    (directory / "statistics.json").write_text(json.dumps(described))

    with pytest.raises(InputError, match=rf"record {first} of .*on_error=skip"):
        train_and_evaluate(config, tmp_path / "run")
    config.dataset.on_error = "skip"
    assert train_and_evaluate(config, tmp_path / "run")["skipped_records"] == 1
    [line] = runs.metrics(tmp_path / "run")
    assert line["skipped_records"] == 1
    assert modes._skipped({"skipped_records": 1}) == "; damaged records skipped: 1"
