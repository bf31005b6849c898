"""The sources of images: the digits, folders, and the data sets of tfds."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import open_source, prepare
from tests.prepared import config, left_behind, noise, stored


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


def test_folder_without_held_out_images_is_refused_with_the_remedy(tmp_path, folder):
    (folder / "val").rename(folder / "held_out")
    with pytest.raises(InputError, match=r"none of val/, valid/, validation/, test/ beside train/"):
        prepare(config(tmp_path, path=folder))
    assert open_source(config(tmp_path, path=folder / "train")).open().class_names == ("cat", "dog")


def test_of_several_folders_of_held_out_images_val_comes_first_and_test_last(tmp_path, folder):
    names = ["val", "valid", "validation", "test"]
    for name in names[1:]:
        shutil.copytree(folder / "val", folder / name)
    for name in names:
        val = open_source(config(tmp_path, path=folder)).open().splits["val"]
        assert len(val) == 4
        assert {example.image.parent.parent.name for example in val} == {name}
        shutil.rmtree(folder / name)


def flat(tmp_path, numbers):
    """Make a folder of one folder per class, empty files in it, and return how it is split."""
    for name, number in numbers.items():
        (tmp_path / "flat" / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (tmp_path / "flat" / name / f"{i}.jpg").touch()
    return tmp_path / "flat"


def split(folder, val_fraction=0.2):
    """Return the relative paths of each split of a folder."""
    opened = open_source(config(folder, path=folder, val_fraction=val_fraction)).open()
    return {
        name: {str(example.image.relative_to(folder)) for example in examples}
        for name, examples in opened.splits.items()
    }


def test_a_flat_folder_is_split_by_a_hash_that_no_other_image_changes(tmp_path):
    before = split(flat(tmp_path, {"cat": 400, "dog": 400}))
    assert not before["train"] & before["val"]
    assert len(before["train"] | before["val"]) == 800
    for name in ("cat", "dog"):
        held_out = [path for path in before["val"] if path.startswith(name)]
        assert 50 < len(held_out) < 110  # binomial: 80 on average, standard deviation 8
    after = split(flat(tmp_path, {"ant": 30, "cat": 500, "dog": 450}))
    assert before["train"] < after["train"]
    assert before["val"] < after["val"]
    moved = tmp_path / "moved"
    (tmp_path / "flat").rename(moved)
    assert split(moved) == after
    larger = split(moved, 0.3)
    assert after["val"] < larger["val"]


def test_the_split_of_a_flat_folder_is_that_of_earlier_versions(tmp_path):
    """The first eight bytes of SHA-256 of class/name over 2^64, as sha256sum computes them too."""
    found = split(flat(tmp_path, {"cat": 8, "dog": 8}))
    assert found["val"] == {"cat/3.jpg", "dog/6.jpg"}  # 0x13dc... and 0x0430... of 0x3333...


def test_each_class_of_a_flat_folder_keeps_an_image_to_train_on(tmp_path):
    folder = flat(tmp_path, {f"{i:02}": 3 for i in range(40)})
    found = split(folder, 0.99)
    assert {path.partition("/")[0] for path in found["train"]} == {f"{i:02}" for i in range(40)}
    assert 40 <= len(found["train"]) < 50


def test_a_flat_folder_of_which_nothing_is_held_out_is_refused(tmp_path):
    folder = flat(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(InputError, match="none is held out by config.dataset.val_fraction=0.2"):
        split(folder)


def test_a_flat_folder_with_another_split_is_another_prepared_set(tmp_path, folder):
    flat_folder = folder / "train"
    made = {
        prepare(config(tmp_path, path=flat_folder, val_fraction=fraction)).name
        for fraction in (0.3, 0.5, 0.5)
    }
    assert len(made) == 2
    whole = {prepare(config(tmp_path, path=folder, val_fraction=f)).name for f in (0.3, 0.5)}
    assert len(whole) == 1  # a folder with val/ is as it is


def test_images_that_are_not_in_class_folders_are_refused(tmp_path, folder):
    flat_folder = folder / "train" / "cat"
    with pytest.raises(InputError, match="cat has no class folders: images belong in .*/<class>/"):
        prepare(config(tmp_path, path=flat_folder))
    with pytest.raises(InputError, match=r"pets has no images directly in it: add some or remove"):
        prepare(config(tmp_path, path=folder.parent))


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
    with pytest.raises(InputError, match=f"{split}/dog has no images directly in it"):
        prepare(config(tmp_path, path=folder))


def test_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"'mnits': .*mnist.*'?folder.*digits"):
        prepare(config(tmp_path, name="mnits"))
    with pytest.raises(InputError, match="imagenet2012"):
        prepare(config(tmp_path, name="imagenet"))


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Six training and three test images, made without a download."""

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
    """Needs files that must be downloaded by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir should contain shapes.tar"

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(len(list(dl_manager.manual_dir.iterdir())))}


class TinyDownload(TinyShapes):
    """Downloads from an address that does not answer."""

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


def test_data_set_without_training_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="has the splits test and needs 'train'"):
        prepare(config(tmp_path, name="tiny_shapes_test_only"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_unlabelled", "not for image classification: it has image"),
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
