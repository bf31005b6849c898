"""Preparing: what a set holds, what is skipped, and what is refused."""

import hashlib
import io
import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import load_image, pixel_sums, prepare, stored_set
from tests.agreement import agree
from tests.prepared import config, contents, left_behind, make_folder, noise, stored


def test_prepared_set_is_read_by_tfds_without_our_code(tmp_path, folder):
    directory = prepare(config(tmp_path, path=folder))
    train, val = stored(directory), stored(directory, "val")
    assert [example["label"] for example in train] == [0, 0, 0, 1, 1, 1]
    assert [example["label"] for example in val] == [0, 0, 1, 1]
    files = sorted((folder / "train").glob("*/*"))
    for example, file in zip(train, files, strict=True):
        np.testing.assert_array_equal(example["image"], load_image(file, 8))
    builder = tfds.builder_from_directory(directory)
    assert builder.info.features["label"].names == ["cat", "dog"]


def test_jpeg_encoding_stores_jpeg_of_the_given_quality(tmp_path, folder):
    sizes = {}
    for quality in (30, 95):
        fields = {"encoding": "jpeg", "jpeg_quality": quality, "image_size": 32}
        directory = prepare(config(tmp_path, path=folder, **fields))
        skip = {"image": tfds.decode.SkipDecoding()}
        records = tfds.builder_from_directory(directory).as_data_source("train", decoders=skip)
        assert Image.open(io.BytesIO(records[0]["image"])).format == "JPEG"
        sizes[quality] = len(records[0]["image"])
    assert sizes[95] > 1.5 * sizes[30]


def test_test_folder_serves_as_val(tmp_path):
    folder = make_folder(tmp_path / "pets", held_out="test")
    assert len(stored(prepare(config(tmp_path, path=folder)), "val")) == 4


@pytest.mark.parametrize("num_classes", [2, 10])
def test_one_class_is_refused_without_a_hint_that_is_refused_next(tmp_path, num_classes):
    folder = make_folder(tmp_path / "pets", classes=("cat",))
    with pytest.raises(InputError, match="one class, 'cat'; at least two are needed") as caught:
        prepare(config(tmp_path, path=folder), num_classes=num_classes)
    assert "num_classes=1" not in str(caught.value)
    assert not left_behind(tmp_path)


def test_directory_is_made_once(tmp_path, folder, monkeypatch):
    directory = prepare(config(tmp_path, path=folder))
    monkeypatch.setattr(stored_set, "_make", None)
    assert prepare(config(tmp_path, path=folder)) == directory
    assert directory.name.startswith("pets-8px-raw-")
    assert directory.parent == tmp_path / "alexnet_jax"


def test_a_changed_folder_or_setting_is_prepared_again(tmp_path, folder):
    made = {prepare(config(tmp_path, path=folder))}
    made.add(prepare(config(tmp_path, path=folder, image_size=9)))
    made.add(prepare(config(tmp_path, path=folder, encoding="jpeg")))
    made.add(prepare(config(tmp_path, path=folder, encoding="jpeg", jpeg_quality=94)))
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "9.png")
    made.add(prepare(config(tmp_path, path=folder)))
    Image.fromarray(noise(20, 20, 3)).save(folder / "train" / "cat" / "9.png")
    made.add(prepare(config(tmp_path, path=folder)))
    assert len(made) == 6
    assert len(stored(max(made, key=lambda path: path.stat().st_mtime))) == 6


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_same_input_gives_the_same_bytes(tmp_path, folder, encoding, monkeypatch):
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 500)
    fields = {"encoding": encoding, "image_size": 16}
    first = prepare(config(tmp_path / "a", path=folder, **fields))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7))
    second = prepare(config(tmp_path / "b", path=folder, **fields))
    assert contents(first) == contents(second)
    assert len([name for name in contents(first) if "-of-" in name]) > 2


def test_mean_and_colour_statistics_are_numpys(tmp_path, folder):
    directory = prepare(config(tmp_path, path=folder))
    images = np.stack([e["image"] for e in stored(directory)]).astype(np.float64)
    mean = np.load(directory / "mean_image.npy", allow_pickle=False)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, images.mean(0), rtol=1e-6)
    statistics = json.loads((directory / "statistics.json").read_text())
    values, vectors = np.array(statistics["eigenvalues"]), np.array(statistics["eigenvectors"])
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, rtol=1e-12)
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(statistics["mean_colour"], images.mean((0, 1, 2)), rtol=1e-6)
    assert statistics["counts"] == {"train": [3, 3], "val": [2, 2]}
    assert statistics["class_names"] == ["cat", "dog"]


def test_colour_axes_are_numpys_eigenvectors_but_for_the_sign(tmp_path, folder):
    directory = prepare(config(tmp_path, path=folder))
    statistics = json.loads((directory / "statistics.json").read_text())
    pixels = np.concatenate([e["image"].reshape(-1, 3) for e in stored(directory)])
    values, vectors = np.linalg.eigh(np.cov(pixels.T.astype(np.float64), bias=True))
    agree(np.array(statistics["eigenvalues"]), values, rtol=1e-12, what="eigenvalues")
    got = np.array(statistics["eigenvectors"])
    signs = np.sign(np.sum(got * vectors, axis=0))
    agree(got, vectors * signs, rtol=1e-12, what="eigenvectors")


def test_statistics_do_not_cancel():
    """The textbook one-pass formula in floats loses every digit here; integers are exact."""
    images = np.full((50, 64, 64, 3), 254, np.uint8)
    images[0, 0, 0] = (255, 253, 255)
    sums = pixel_sums.PixelSums.zeros(64)
    for image in images:
        sums.add(image)
    exact = np.cov(images.reshape(-1, 3).T.astype(np.float64) - 254, bias=True)
    np.testing.assert_allclose(sums.covariance(), exact, rtol=1e-9)


def test_sums_merge_in_any_order_to_the_same_bits():
    images = noise(6, 8, 8, 3)
    whole, parts = pixel_sums.PixelSums.zeros(8), [pixel_sums.PixelSums.zeros(8) for _ in range(3)]
    for i, image in enumerate(images):
        whole.add(image)
        parts[i % 3].add(image)
    merged = pixel_sums.PixelSums.zeros(8)
    for part in reversed(parts):
        merged.merge(part)
    np.testing.assert_array_equal(merged.covariance(), whole.covariance())
    np.testing.assert_array_equal(merged.mean_image(), whole.mean_image())


def test_checksums_are_those_of_the_files(tmp_path, folder):
    directory = prepare(config(tmp_path, path=folder))
    statistics = json.loads((directory / "statistics.json").read_text())
    described = {name: file["sha256"] for name, file in statistics["files"].items()}
    files = contents(directory)
    del files["statistics.json"]
    assert described == {name: hashlib.sha256(file).hexdigest() for name, file in files.items()}
    [shard] = [name for name in files if name.startswith("pictures-train")]
    of_train = hashlib.sha256(described[shard].encode()).hexdigest()
    assert statistics["made_from"]["train_sha256"] == of_train


def test_files_that_are_not_images_are_skipped_and_counted(tmp_path, folder, capsys):
    for name in ("train/README.md", "train/cat/Thumbs.db", "val/dog/.hidden.jpg", "val/dog/a.txt"):
        (folder / name).write_text("x")
    (folder / "train" / "cat" / "nested.jpg").mkdir()
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    directory = prepare(config(tmp_path, path=folder))
    assert json.loads((directory / "statistics.json").read_text())["not_pictures"] == 6
    assert "skipped 6 files that are not images, 0 undecodable" in capsys.readouterr().err
    assert len(stored(directory)) == 6


def test_extensions_in_capitals_are_images(tmp_path, folder):
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "0.PNG")
    assert len(stored(prepare(config(tmp_path, path=folder)))) == 6


def test_undecodable_image_stops_preparing_by_name_with_the_remedy(tmp_path, folder):
    (folder / "train" / "dog" / "bad.jpg").write_text("not an image")
    with pytest.raises(InputError, match=r"dog/bad\.jpg .*--config\.dataset\.on_error=skip"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_undecodable_images_up_to_one_percent_are_skipped_and_counted(tmp_path, capsys):
    folder = make_folder(tmp_path / "pets", train=60, val=40, size=2)
    (folder / "train" / "dog" / "10.png").write_bytes(b"")
    (folder / "val" / "cat" / "0.png").unlink()
    (folder / "val" / "cat" / "0.png").symlink_to("nowhere")
    fields = {"path": folder, "image_size": 2}
    directory = prepare(config(tmp_path, on_error="skip", **fields))
    statistics = json.loads((directory / "statistics.json").read_text())
    assert [part.split(" ")[0] for part in statistics["undecodable"]] == [
        str(folder / "train" / "dog" / "10.png"),
        str(folder / "val" / "cat" / "0.png"),
    ]
    assert statistics["counts"] == {"train": [60, 59], "val": [39, 40]}
    assert (len(stored(directory)), len(stored(directory, "val"))) == (119, 79)
    assert "2 undecodable" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"10\.png .*on_error=skip"):
        prepare(
            config(tmp_path, on_error="raise", **fields)
        )  # it does not accept a set without them


def test_more_than_one_percent_undecodable_is_refused(tmp_path):
    folder = make_folder(tmp_path / "pets", train=60, val=40, size=2)
    for i in range(3):
        (folder / "train" / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"more than 1% .* undecodable"):
        prepare(config(tmp_path, path=folder, image_size=2, on_error="skip"))
    assert not left_behind(tmp_path)


def _one_class(root, train=4, val=4, size=8):
    """Make train and val images of one class, and return the folder of the train images."""
    for split, number in (("train", train), ("val", val)):
        folder = root / split / "cat"
        folder.mkdir(parents=True)
        for i in range(number):
            Image.fromarray(noise(size, size, 3, seed=i)).save(folder / f"{i:03d}.png")
    return root / "train" / "cat"


def test_pipes_and_links_to_pipes_are_not_images(tmp_path):
    folder = _one_class(tmp_path / "images")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to(folder / "pipe.jpg")
    directory = prepare(config(tmp_path / "data", path=tmp_path / "images"))
    assert json.loads((directory / "statistics.json").read_text())["counts"]["train"] == [4]


@pytest.mark.parametrize(
    ("target", "reason"), [("nothing.jpg", "does not exist"), ("loop.jpg", "cannot be decoded")]
)
def test_a_link_to_nothing_or_to_itself_is_named(tmp_path, target, reason):
    folder = _one_class(tmp_path / "images")
    (folder / "loop.jpg").symlink_to(folder / target)
    with pytest.raises(InputError, match=f"loop.jpg {reason}"):
        prepare(config(tmp_path / "data", path=tmp_path / "images"))


def test_an_image_that_declares_a_huge_size_is_named(tmp_path):
    """100,000,000 x 1 pixels in 69 bytes."""
    header = struct.pack(">IIBBBBB", 100_000_000, 1, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        bomb += struct.pack(">I", len(content)) + kind + content + crc
    (_one_class(tmp_path / "images") / "bomb.png").write_bytes(bomb)
    with pytest.raises(InputError, match="bomb.png cannot be decoded as an image .*100000000"):
        prepare(config(tmp_path / "data", path=tmp_path / "images"))


def test_a_class_name_that_is_not_utf8_is_refused_before_any_work(tmp_path):
    _one_class(tmp_path / "images")
    for split in ("train", "val"):
        folder = tmp_path / "images" / split
        (folder / "cat").rename(folder / os.fsdecode(b"do\xffg"))
    with pytest.raises(InputError, match="rename it to printable UTF-8"):
        prepare(config(tmp_path / "data", path=tmp_path / "images"))


def test_one_percent_may_be_skipped_of_each_split_not_only_of_all(tmp_path):
    _one_class(tmp_path / "images", train=300, val=3)
    for image in (tmp_path / "images" / "val" / "cat").iterdir():
        image.write_bytes(b"not an image")
    with pytest.raises(InputError, match="more than 1% of the images are undecodable"):
        prepare(config(tmp_path / "data", path=tmp_path / "images", on_error="skip"))


def test_file_in_the_way_of_data_dir_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/data .*--config\.dataset\.data_dir"):
        prepare(config(tmp_path / "file" / "data", path=folder))


def test_data_dir_that_cannot_be_written_is_refused(folder):
    with pytest.raises(InputError, match=r"/proc/data .*--config\.dataset\.data_dir"):
        prepare(config("/proc/data", path=folder))  # not even root writes there


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(folder, tmp_path):
    fields = config(tmp_path, path=folder)
    directory = prepare(fields)
    shutil.rmtree(directory)
    lock = directory.with_name(directory.name + ".lock")
    lock.unlink()
    (tmp_path / "mine").write_text("mine")
    lock.symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=f"{lock} is not a regular file: remove it"):
        prepare(fields)
    assert (tmp_path / "mine").read_text() == "mine"
