"""Preparing: every kind of picture, every source, and every way in which it can go wrong."""

import fcntl
import hashlib
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import weakref
import zlib
from collections.abc import Sequence

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from alexnet_jax import merge, pixel_sums, shards, sources, workers
from alexnet_jax import prepare as prepare_lib
from alexnet_jax.errors import InputError
from alexnet_jax.example import Example
from alexnet_jax.pictures import load_image
from alexnet_jax.prepare import prepare
from tests.agreement import agree

ROOT = pathlib.Path(__file__).parents[1]


def config(data_dir, name="folder", path="", **fields):
    defaults = {
        "name": name,
        "path": str(path),
        "data_dir": str(data_dir),
        "image_size": 8,
        "encoding": "raw",
        "jpeg_quality": 95,
        "on_error": "raise",
    }
    return ml_collections.ConfigDict(defaults | fields)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_folder(root, classes=("cat", "dog"), train=3, val=2, size=8, held_out="val"):
    """A folder data set of PNG noise; returns its root."""
    for split, number in (("train", train), (held_out, val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = noise(size, size, 3, seed=[len(split), label, i])
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def stored(directory, split="train"):
    """All records of a prepared set, through tfds and nothing of ours."""
    return list(tfds.builder_from_directory(directory).as_data_source(split))


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def left_behind(data_dir):
    """What an aborted preparation has left, other than the empty lock files."""
    return [p for p in (data_dir / "alexnet_jax").glob("*") if p.suffix != ".lock"]


# --- one picture ------------------------------------------------------------------------------


def opened(path, attribute):
    with Image.open(path) as image:
        return getattr(image, attribute)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_a_picture_of_the_stored_size_is_kept_pixel_for_pixel(tmp_path):
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(load_image(pixels, 8), pixels)
    path = saved(tmp_path, Image.fromarray(pixels), "a.png")
    for given in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(load_image(given, 8), pixels)


@pytest.mark.parametrize("shape", [(60, 100, 3), (100, 60, 3), (61, 100, 3)])
def test_square_is_the_papers_resize_then_centre_crop_up_to_rounding(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), x + y], -1)
    image = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    scale = 30 / min(image.size)
    resized = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    paper = np.asarray(ImageOps.fit(resized, (30, 30)), np.int32)
    assert np.abs(load_image(np.asarray(image), 30).astype(np.int32) - paper).mean() < 2


def test_shrinking_antialiases(tmp_path):
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    small = load_image(checkers.astype(np.uint8), 8)
    assert np.ptp(small) < 20, "a checkerboard must become grey, not a moire"


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 5)])
def test_tiny_and_thin_pictures_are_enlarged(shape):
    pixels = np.full((*shape, 3), (10, 200, 90), np.uint8)
    np.testing.assert_array_equal(load_image(pixels, 16), np.full((16, 16, 3), (10, 200, 90)))


def test_grey_becomes_rgb(tmp_path):
    pixels = noise(8, 8)
    path = saved(tmp_path, Image.fromarray(pixels), "a.png")
    np.testing.assert_array_equal(load_image(path, 8), np.stack([pixels] * 3, -1))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = noise(8, 8) > 127
    path = saved(tmp_path, Image.fromarray(bits), "a.png")
    assert opened(path, "mode") == "1"
    np.testing.assert_array_equal(load_image(path, 8), np.stack([bits * 255] * 3, -1))


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(noise(8, 8, 3)).quantize(16)
    path = saved(tmp_path, image, "a.png")
    assert opened(path, "mode") == "P"
    np.testing.assert_array_equal(load_image(path, 8), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    deep = np.array([[0, 255, 257, 32768], [40000, 50000, 65280, 65535]] * 2, np.uint16)
    path = saved(tmp_path, Image.fromarray(deep), name)
    assert opened(path, "mode") in ("I;16", "I")
    expected = np.rint(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(path, 4), np.stack([expected] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    image = Image.fromarray(noise(8, 8, 3)).convert(mode)
    image.putalpha(Image.fromarray(np.repeat([[0, 255]], 8, 0).repeat(4, 1).astype(np.uint8)))
    result = load_image(saved(tmp_path, image, "a.png"), 8)
    np.testing.assert_array_equal(result[:, :4], 255)
    np.testing.assert_array_equal(result[:, 4:], np.asarray(image.convert("RGB"))[:, 4:])


def test_half_transparency_is_blended(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    result = load_image(saved(tmp_path, image, "a.png"), 4)
    assert np.abs(result[0, 0].astype(int) - (127, 177, 227)).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_transparent_palette_is_laid_over_white(tmp_path, name):
    image = Image.fromarray(np.array([[0, 1]] * 2, np.uint8)).convert("P")
    image.putpalette([9, 8, 7, 30, 20, 10])
    result = load_image(saved(tmp_path, image, name, transparency=0), 2)
    np.testing.assert_array_equal(result[0], [[255, 255, 255], [30, 20, 10]])


def test_cmyk_jpeg_is_converted(tmp_path):
    colour = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    path = saved(tmp_path, colour, "a.jpg", quality=95)
    assert opened(path, "mode") == "CMYK"
    assert np.abs(load_image(path, 16)[8, 8].astype(int) - (200, 100, 50)).max() <= 4


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the upper half goes to the right
    path = saved(tmp_path, Image.fromarray(pixels), "a.jpg", exif=exif, quality=95)
    result = load_image(path, 16)
    assert result[:, 12:].min() > 245
    assert result[:, :4].max() < 10


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's
def test_broken_exif_does_not_spoil_a_good_picture(tmp_path):
    image = Image.new("RGB", (8, 8), (50, 60, 70))
    path = saved(tmp_path, image, "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert np.abs(load_image(path, 8).astype(int) - (50, 60, 70)).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#f00", "#0f0", "#00f")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert opened(path, "n_frames") == 3
    np.testing.assert_array_equal(load_image(path, 4)[0, 0], (255, 0, 0))


def bad_pictures():
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "JPEG")
    png = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(png, "PNG")
    bomb = b"P6 30000 30000 255\n" + bytes(100)
    floats = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(floats, "TIFF")
    return {
        "truncated.jpg": whole.getvalue()[:2000],
        "truncated.png": png.getvalue()[:2000],
        "text.jpg": b"this is not a picture",
        "empty.png": b"",
        "bomb.ppm": bomb,
        "floats.tif": floats.getvalue(),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_undecodable_picture_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(bad_pictures()[name])
    with pytest.raises(InputError, match=name) as caught:
        load_image(tmp_path / name, 8)
    assert "\n" not in str(caught.value)


def test_missing_picture_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg .*No such file"):
        load_image(tmp_path / "gone.jpg", 8)


# --- the prepared set -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "pets")


def test_prepared_set_is_read_by_tfds_alone(tmp_path, folder):
    directory = prepare(config(tmp_path, path=folder))
    train, val = stored(directory), stored(directory, "val")
    assert [example["label"] for example in train] == [0, 0, 0, 1, 1, 1]
    assert [example["label"] for example in val] == [0, 0, 1, 1]
    files = sorted((folder / "train").glob("*/*"))
    for example, file in zip(train, files, strict=True):
        np.testing.assert_array_equal(example["image"], load_image(file, 8))
    builder = tfds.builder_from_directory(directory)
    assert builder.info.features["label"].names == ["cat", "dog"]


def test_jpeg_encoding_stores_jpeg_of_the_quality_asked_for(tmp_path, folder):
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


def test_directory_is_made_once(tmp_path, folder, monkeypatch):
    directory = prepare(config(tmp_path, path=folder))
    monkeypatch.setattr(prepare_lib, "_make", None)
    assert prepare(config(tmp_path, path=folder)) == directory
    assert directory.name.startswith("pets-8px-raw-")
    assert directory.parent == tmp_path / "alexnet_jax"


def test_a_changed_folder_or_setting_is_prepared_anew(tmp_path, folder):
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
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 500)
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
    """The textbook one-pass formula in floats loses every digit here; integers lose none."""
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


# --- damaged pictures and files that are none -------------------------------------------------


def test_files_that_are_no_pictures_are_skipped_and_counted(tmp_path, folder, capsys):
    for name in ("train/README.md", "train/cat/Thumbs.db", "val/dog/.hidden.jpg", "val/dog/a.txt"):
        (folder / name).write_text("x")
    (folder / "train" / "cat" / "nested.jpg").mkdir()
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    directory = prepare(config(tmp_path, path=folder))
    assert json.loads((directory / "statistics.json").read_text())["not_pictures"] == 6
    assert "skipped 6 files that are no pictures, 0 undecodable" in capsys.readouterr().err
    assert len(stored(directory)) == 6


def test_extensions_in_capitals_are_pictures(tmp_path, folder):
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "0.PNG")
    assert len(stored(prepare(config(tmp_path, path=folder)))) == 6


def test_undecodable_picture_stops_preparing_by_name_with_the_remedy(tmp_path, folder):
    (folder / "train" / "dog" / "bad.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"dog/bad\.jpg .*--config\.dataset\.on_error=skip"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_undecodable_pictures_up_to_one_percent_are_skipped_and_counted(tmp_path, capsys):
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
        prepare(config(tmp_path, on_error="raise", **fields))  # it does not accept the lack


def test_more_than_one_percent_undecodable_is_refused(tmp_path):
    folder = make_folder(tmp_path / "pets", train=60, val=40, size=2)
    for i in range(3):
        (folder / "train" / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"more than 1% .* undecodable"):
        prepare(config(tmp_path, path=folder, image_size=2, on_error="skip"))
    assert not left_behind(tmp_path)


# --- sources ----------------------------------------------------------------------------------


def test_digits_are_1438_and_359_of_all_ten_classes(tmp_path):
    directory = prepare(config(tmp_path, name="digits"))
    train, val = stored(directory), stored(directory, "val")
    assert (len(train), len(val)) == (1438, 359)
    assert {e["label"] for e in train} == {e["label"] for e in val} == set(range(10))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    np.testing.assert_allclose(
        val[0]["image"], np.stack([bunch.images[4]] * 3, -1) * 15.9375, atol=0.5
    )
    assert val[0]["label"] == bunch.target[4]
    assert max(e["image"].max() for e in train) == 255


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        prepare(config(tmp_path, path=tmp_path / "nowhere"))


def test_folder_without_train_is_refused(tmp_path, folder):
    (folder / "train").rename(folder / "training")
    with pytest.raises(InputError, match="has no train/"):
        prepare(config(tmp_path, path=folder))


def test_folder_without_val_or_test_is_refused(tmp_path, folder):
    (folder / "val").rename(folder / "valid")
    with pytest.raises(InputError, match="neither val/ nor test/"):
        prepare(config(tmp_path, path=folder))


def test_folder_without_classes_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / "flat" / split / "a.png")
    with pytest.raises(InputError, match=r"train has no class folders"):
        prepare(config(tmp_path, path=tmp_path / "flat"))


def test_classes_that_differ_are_named(tmp_path, folder):
    (folder / "train" / "dog").rename(folder / "train" / "puppy")
    with pytest.raises(InputError, match=r"'puppy' only in train/, 'dog' only in val/"):
        prepare(config(tmp_path, path=folder))


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_class_is_named(tmp_path, folder, split):
    for file in (folder / split / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(InputError, match=f"{split}/dog has no pictures"):
        prepare(config(tmp_path, path=folder))


def test_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"'mnits': .*mnist.*'?folder.*digits"):
        prepare(config(tmp_path, name="mnits"))
    with pytest.raises(InputError, match="imagenet2012"):
        prepare(config(tmp_path, name="imagenet"))


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Six training and three test pictures, made without a download."""

    VERSION = tfds.core.Version("1.2.3")
    pkg_dir_path = pathlib.Path(__file__).parent
    splits = ("train", "test")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=["dot", "bar", "box"]),
            "extra": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        numbers = {"train": 6, "test": 3, "validation": 2}
        return {split: self._generate_examples(numbers[split]) for split in self.splits}

    def _generate_examples(self, number):
        for i in range(number):
            file = io.BytesIO()
            Image.fromarray(np.full((5, 9), 20 * i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3, "extra": "text"}


class TinyShapesValidated(TinyShapes):
    """Has validation and test."""

    splits = ("train", "validation", "test")


class TinyShapesTrainOnly(TinyShapes):
    """Has neither validation nor test."""

    splits = ("train",)


class TinyShapesTestOnly(TinyShapes):
    """Has nothing to train on."""

    splits = ("test",)


class TinyUnlabelled(TinyShapes):
    """No label."""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return self.dataset_info_from_configs(features=features)


class TinyThroughTensorflow(TinyShapes):
    """Opens its files through TensorFlow, as imagenet2012 does."""

    def _generate_examples(self, number):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

        with tensorflow.io.gfile.GFile("/dev/null") as file:
            yield 0, {"image": file, "label": 0, "extra": ""}


class TinyByHand(TinyShapes):
    """Wants files that must be downloaded by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir should contain shapes.tar"

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(len(list(dl_manager.manual_dir.iterdir())))}


class TinyDownload(TinyShapes):
    """Lies behind an address that nobody answers."""

    def _split_generators(self, dl_manager):
        dl_manager.download("http://127.0.0.1:9/shapes.tar")


def test_tfds_name_is_prepared_through_the_same_path(tmp_path):
    directory = prepare(config(tmp_path, name="tiny_shapes"))
    assert directory.name.startswith("tiny_shapes-1.2.3-8px-raw-")
    train, val = stored(directory), stored(directory, "val")
    assert sorted(int(e["image"][0, 0, 0]) for e in train) == [0, 20, 40, 60, 80, 100]
    assert all(e["label"] == e["image"][0, 0, 0] // 20 % 3 for e in train)
    assert len(val) == 3
    assert json.loads((directory / "statistics.json").read_text())["class_names"][2] == "box"


def test_validation_is_preferred_to_test(tmp_path):
    assert len(stored(prepare(config(tmp_path, name="tiny_shapes_validated")), "val")) == 2


def test_the_last_tenth_is_held_out_where_there_is_only_a_train_split(tmp_path):
    """As in tf_flowers."""
    sets = []
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        directory = prepare(config(data_dir, name="tiny_shapes_train_only"))
        parts = [stored(directory, split) for split in ("train", "val")]
        sets.append([[int(e["image"][0, 0, 0]) for e in part] for part in parts])
    assert sets[0] == sets[1]
    assert [len(part) for part in sets[0]] == [5, 1]
    assert sorted(sum(sets[0], [])) == [0, 20, 40, 60, 80, 100]


def test_data_set_without_training_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="has the splits test and needs 'train'"):
        prepare(config(tmp_path, name="tiny_shapes_test_only"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_unlabelled", "no image classification set: it has image"),
        ("tiny_through_tensorflow", "pip install tensorflow-cpu"),
        ("tiny_by_hand", r"by hand into .*downloads/manual: manual_dir should contain shapes\.tar"),
        ("tiny_download", "cannot be downloaded .*check the network"),
    ],
)
def test_tfds_failures_are_one_line_with_the_remedy(tmp_path, name, message, capsys):
    with pytest.raises(InputError, match=message) as caught:
        prepare(config(tmp_path, name=name))
    assert "\n" not in str(caught.value)
    assert "pip install" not in capsys.readouterr().out, "tfds's own banner"
    assert not left_behind(tmp_path)


# --- fields, disks, kills ---------------------------------------------------------------------


def test_file_in_the_way_of_data_dir_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/data .*--config\.dataset\.data_dir"):
        prepare(config(tmp_path / "file" / "data", path=folder))


def test_data_dir_that_cannot_be_written_is_refused(folder):
    with pytest.raises(InputError, match=r"/proc/data .*--config\.dataset\.data_dir"):
        prepare(config("/proc/data", path=folder))  # not even root writes there


def run(code, **options):
    """Runs code in a fresh interpreter from the repository's root."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **options)


PREPARE = """
import sys, ml_collections
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare
{before}
try:
    print(prepare(ml_collections.ConfigDict({fields})))
except InputError as error:
    sys.exit(f"InputError: {{error}}")
"""


@pytest.fixture
def file_size_limit():
    """Writes beyond this many bytes a file fail, as they do on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [64, 300])  # 75 kB fail when they are closed, 1.6 MB before
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, folder, size, file_size_limit):
    file_size_limit(40_000)
    with pytest.raises(
        InputError, match=r"^cannot write .*File too large.*it needs about"
    ) as caught:
        prepare(config(tmp_path, path=folder, image_size=size))
    assert "\n" not in str(caught.value)
    assert "--config.dataset.data_dir" in str(caught.value)
    assert not left_behind(tmp_path)


def test_raw_set_that_cannot_fit_is_refused_before_it_is_begun(tmp_path, folder, monkeypatch):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(prepare_lib, "_picture_bytes", lambda _: usage.f_bavail * usage.f_frsize)
    with pytest.raises(InputError, match=r"it needs .* GB, free are .* GB"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_fewer_records_read_back_than_written_are_refused(tmp_path, folder, monkeypatch):
    class Forgetful(shards.ArrayRecordWriter):
        def write(self, record):
            if record[-1] % 2:
                super().write(record)

    monkeypatch.setattr(shards, "ArrayRecordWriter", Forgetful)
    with pytest.raises(InputError, match=r"records written, \d+ left"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def children(process):
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The fields of a preparation by two processes that was killed when some shards were done."""
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(noise(400, 400, 3)).save(tmp_path / "big.png")
    for i in range(40):
        (tmp_path / "pets" / "train" / "cat" / f"{i}.png").hardlink_to(tmp_path / "big.png")
    shutil.copytree(tmp_path / "pets" / "train", tmp_path / "pets" / "val", copy_function=os.link)
    fields = config(tmp_path, path=tmp_path / "pets").to_dict()
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 4 * 8 * 8 * 3)  # 10 shards a split
    monkeypatch.setattr(prepare_lib, "PICTURES_A_PROCESS", 40)
    process = run(PREPARE.format(before=SMALL_SHARDS, fields=fields))
    wait_for(lambda: list(tmp_path.glob("alexnet_jax/*.incomplete/*.done")))
    workers = children(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(workers) >= 2
    wait_for(lambda: not any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers))
    return fields


SMALL_SHARDS = """
import os
from alexnet_jax import prepare as lib
lib.SHARD_BYTES, lib.PICTURES_A_PROCESS = 4 * 8 * 8 * 3, 40
os.sched_getaffinity = lambda pid: range(2)
"""


def test_killed_preparation_goes_on_from_the_finished_shards(tmp_path, killed, monkeypatch):
    [leftover] = left_behind(tmp_path)
    assert leftover.suffix == ".incomplete", "it must not be taken for a finished one"
    finished = sorted(file.with_suffix("") for file in leftover.glob("*.done"))
    before = {file.name: file.stat().st_mtime_ns for file in finished}
    assert 0 < len(finished) < 20
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    directory = prepare(ml_collections.ConfigDict(killed))
    assert left_behind(tmp_path) == [directory]
    assert {name: (directory / name).stat().st_mtime_ns for name in before} == before
    whole = prepare(config(tmp_path / "other", path=tmp_path / "pets"))
    assert contents(directory) == contents(whole)


def test_interrupt_leaves_finished_shards_and_nothing_else(tmp_path, folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merge, "_write_statistics", interrupt)
        prepare(config(tmp_path, path=folder))
    monkeypatch.setattr(workers, "make_shard", None)  # nothing is made again
    directory = prepare(config(tmp_path, path=folder))
    assert left_behind(tmp_path) == [directory]
    assert not list(directory.glob("*.done")) + list(directory.glob("*.tmp"))


def test_interrupt_before_the_first_shard_leaves_nothing(tmp_path, folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "load_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_a_bad_picture_leaves_the_shards_before_it_to_go_on_from(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 8 * 8 * 3)  # a picture each
    for i in range(100):
        (folder / "val" / "dog" / f"more{i}.png").hardlink_to(folder / "val" / "dog" / "0.png")
    (folder / "val" / "dog" / "z.png").write_text("no picture")
    with pytest.raises(InputError, match=r"dog/z\.png .*110 finished shards are kept in"):
        prepare(config(tmp_path, path=folder))
    statistics = prepare(config(tmp_path, path=folder, on_error="skip")) / "statistics.json"
    assert len(json.loads(statistics.read_text())["undecodable"]) == 1


# --- many processes, many machines ------------------------------------------------------------


def test_one_and_four_processes_give_the_same_bytes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 400)
    monkeypatch.setattr(prepare_lib, "PICTURES_A_PROCESS", 1)
    fields = {"path": folder, "encoding": "jpeg"}
    used = []
    make_shards = prepare_lib.make_shards
    monkeypatch.setattr(
        prepare_lib,
        "make_shards",
        lambda jobs, processes, report: (
            used.append(processes) or make_shards(jobs, processes, report)
        ),
    )
    directories = []
    for number in (1, 4):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, number=number: range(number))
        directories.append(prepare(config(tmp_path / str(number), **fields)))
    assert used[0] == 1
    assert used[1] > 1
    assert contents(directories[0]) == contents(directories[1])


def test_shares_of_machines_merge_to_the_same_bytes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 8 * 8 * 3)
    whole = prepare(config(tmp_path / "whole", path=folder))
    for i in (2, 0, 1):
        directory = prepare(config(tmp_path, path=folder), share=f"{i}/3")
        assert not directory.exists()
    incomplete = directory.with_name(directory.name + ".incomplete")
    assert len(list(incomplete.glob("*.done"))) == 10
    with monkeypatch.context() as patch:
        patch.setattr(workers, "make_shard", None)  # merging makes none
        assert prepare(config(tmp_path, path=folder)) == directory
    assert contents(directory) == contents(whole)
    assert prepare(config(tmp_path, path=folder), share="1/3") == directory


def test_a_share_that_is_missing_is_made_when_merging(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(prepare_lib, "SHARD_BYTES", 8 * 8 * 3)
    whole = prepare(config(tmp_path / "whole", path=folder))
    prepare(config(tmp_path, path=folder), share="1/2")
    assert contents(prepare(config(tmp_path, path=folder))) == contents(whole)


@pytest.mark.parametrize("share", ["3/3", "1", "-1/2", "a/b", "1/0", ""])
def test_share_that_is_none_is_refused(tmp_path, folder, share):
    with pytest.raises(InputError, match=r"--prepare_shard=.*: give i/n"):
        prepare(config(tmp_path, path=folder), share=share)


class Deadly(Sequence):
    """Pictures whose reading ends the process, as the system does when memory is short."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_ends_preparing_with_its_reason(tmp_path):
    jobs = [
        shards.Job(tmp_path / f"shard{i}", Deadly(), config(tmp_path), num_classes=1, allowed=0)
        for i in range(2)
    ]
    with pytest.raises(InputError, match=r"made shard\d was killed, .* memory is short"):
        list(workers.make_shards(jobs, 2, lambda number: None))
    assert not list(tmp_path.glob("*.done"))


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


# --- other processes --------------------------------------------------------------------------


def test_second_process_waits_and_finds_the_set_finished(tmp_path, folder):
    elsewhere = prepare(config(tmp_path / "elsewhere", path=folder))
    directory = tmp_path / "alexnet_jax" / elsewhere.name
    directory.parent.mkdir()
    fields = config(tmp_path, path=folder).to_dict()
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process prepares, and is slow
        other = run(PREPARE.format(before="", fields=fields))
        assert other.stderr.readline() == f"waiting: another process is preparing {directory}\n"
        elsewhere.rename(directory)
    out, err = other.communicate(timeout=60)
    assert (out.strip(), err) == (str(directory), "")


class Fleeting(Sequence):
    """Pictures that are counted for as long as anybody holds them."""

    held = most = 0

    def __len__(self):
        return 300

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        pixels = noise(8, 8, 3, seed=index)
        weakref.finalize(pixels, self.count, -1)
        self.count(1)
        return Example(pixels, 0, f"picture {index}")

    def count(self, change):
        self.held += change
        self.most = max(self.most, self.held)


def test_a_shard_is_made_with_few_pictures_in_memory(tmp_path):
    examples = Fleeting()
    job = shards.Job(tmp_path / "shard", examples, config(tmp_path), num_classes=1, allowed=0)
    assert shards.make_shard(job, lambda number: None) == []
    assert shards.finished(job.path).sums.count == 300
    assert examples.most <= 3


def test_tensorflow_is_never_imported(tmp_path, folder):
    fields = config(tmp_path, path=folder).to_dict()
    code = PREPARE.format(before="", fields=fields) + "assert 'tensorflow' not in sys.modules\n"
    process = run(code)
    assert process.wait(timeout=60) == 0, process.stderr.read()


def test_sources_list_of_extensions_is_decodable():
    Image.init()
    openable = {e for e, form in Image.registered_extensions().items() if form in Image.OPEN}
    assert openable >= sources.EXTENSIONS


# --- what a folder may hold besides pictures ---------------------------------------------------


def _pictures(root, train=4, val=4, size=8):
    """Make train and val pictures of one class, and return the folder of the train ones."""
    for split, number in (("train", train), ("val", val)):
        folder = root / split / "cat"
        folder.mkdir(parents=True)
        for i in range(number):
            Image.fromarray(noise(size, size, 3, seed=i)).save(folder / f"{i:03d}.png")
    return root / "train" / "cat"


def test_pipes_and_links_to_pipes_are_no_pictures(tmp_path):
    folder = _pictures(tmp_path / "pictures")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to(folder / "pipe.jpg")
    directory = prepare(config(tmp_path / "data", path=tmp_path / "pictures"))
    assert json.loads((directory / "statistics.json").read_text())["counts"]["train"] == [4]


@pytest.mark.parametrize("target", ["nothing.jpg", "loop.jpg"])
def test_a_link_to_nothing_or_to_itself_is_named(tmp_path, target):
    folder = _pictures(tmp_path / "pictures")
    (folder / "loop.jpg").symlink_to(folder / target)
    with pytest.raises(InputError, match="loop.jpg cannot be decoded"):
        prepare(config(tmp_path / "data", path=tmp_path / "pictures"))


def test_a_picture_that_declares_a_huge_size_is_named(tmp_path):
    """100,000,000 x 1 pixels in 69 bytes."""
    header = struct.pack(">IIBBBBB", 100_000_000, 1, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        bomb += struct.pack(">I", len(content)) + kind + content + crc
    (_pictures(tmp_path / "pictures") / "bomb.png").write_bytes(bomb)
    with pytest.raises(InputError, match="bomb.png cannot be decoded as a picture .*100000000"):
        prepare(config(tmp_path / "data", path=tmp_path / "pictures"))


def test_a_class_name_that_is_not_utf8_is_refused_before_any_work(tmp_path):
    _pictures(tmp_path / "pictures")
    for split in ("train", "val"):
        folder = tmp_path / "pictures" / split
        (folder / "cat").rename(folder / os.fsdecode(b"do\xffg"))
    with pytest.raises(InputError, match="rename it to printable UTF-8"):
        prepare(config(tmp_path / "data", path=tmp_path / "pictures"))


def test_one_percent_may_be_left_out_of_each_split_not_of_one_of_them(tmp_path):
    _pictures(tmp_path / "pictures", train=300, val=3)
    for picture in (tmp_path / "pictures" / "val" / "cat").iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(InputError, match="more than 1% of the pictures are undecodable"):
        prepare(config(tmp_path / "data", path=tmp_path / "pictures", on_error="skip"))
