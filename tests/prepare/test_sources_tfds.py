"""The data sets that the recipes name, by tfds's own builders, from small originals."""

import importlib.util
import io
import json
import pathlib
import tarfile

import ml_collections
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare, sources_tfds

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
with_tensorflow = pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs tensorflow-cpu")
without_tensorflow = pytest.mark.skipif(HAS_TENSORFLOW, reason="tensorflow is there")


def config(data_dir, name, **fields):
    defaults = {"name": name, "path": "", "data_dir": str(data_dir), "image_size": 32}
    defaults |= {"encoding": "raw", "jpeg_quality": 95, "on_error": "raise"}
    return ml_collections.ConfigDict(defaults | fields)


def stored(directory, split):
    return list(tfds.builder_from_directory(directory).as_data_source(split))


def class_names(directory):
    return json.loads((directory / "statistics.json").read_text())["class_names"]


def jpeg(grey, size=(50, 40)):
    file = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(file, "JPEG", quality=95)
    return file.getvalue()


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def imagenet_tars(tmp_path):
    """The two originals in their layout: tars in a tar for training, a flat one for validation."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    classes = {"n01440764": (10, 20), "n01443537": (30, 40), "n15075141": (50, 60)}
    inner = {
        f"{synset}.tar": tar(
            tmp_path / "inner.tar",
            {f"{synset}_{i}.JPEG": jpeg(grey) for i, grey in enumerate(greys)},
        ).read_bytes()
        for synset, greys in classes.items()
    }
    tar(manual / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (2, 1, 3)}
    tar(manual / "ILSVRC2012_img_val.tar", val)
    return manual


@with_tensorflow
def test_imagenet_is_prepared_from_its_tars(tmp_path, imagenet_tars):
    directory = prepare(config(tmp_path, "imagenet2012"))
    names = class_names(directory)
    assert (len(names), names[0], names[999]) == (1000, "n01440764", "n15075141")
    found = {(names[e["label"]], int(e["image"][0, 0, 0])) for e in stored(directory, "train")}
    assert found == {
        *(("n01440764", grey) for grey in (10, 20)),
        *(("n01443537", grey) for grey in (30, 40)),
        *(("n15075141", grey) for grey in (50, 60)),
    }
    # The labels of the first three validation images, as published with the data set.
    val = {int(e["image"][0, 0, 0]): names[e["label"]] for e in stored(directory, "val")}
    assert val == {101: "n01751748", 102: "n09193705", 103: "n02105855"}


def test_missing_imagenet_tars_are_asked_for_by_name_and_place(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(config(tmp_path, "imagenet2012"))
    message = str(caught.value)
    assert str(tmp_path / "downloads" / "manual") in message
    for part in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "image-net.org"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("missing", ["train", "val"])
def test_one_missing_imagenet_tar_is_asked_for(tmp_path, imagenet_tars, missing):
    (imagenet_tars / f"ILSVRC2012_img_{missing}.tar").unlink()
    with pytest.raises(InputError, match=rf"ILSVRC2012_img_{missing}\.tar missing"):
        prepare(config(tmp_path, "imagenet2012"))


@without_tensorflow
def test_what_only_preparing_imagenet_needs_is_named(tmp_path, imagenet_tars):
    with pytest.raises(InputError, match=r"training does not.*pip install tensorflow-cpu"):
        prepare(config(tmp_path, "imagenet2012"))


def cifar_record(labels, value):
    return bytes(labels) + bytes([value] * 1024 + [value + 1] * 1024 + [value + 2] * 1024)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar_tar(request, tmp_path, monkeypatch):
    """The original archive with two images per file, which is downloaded from this disk."""
    builder = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[request.param]
    if request.param == "cifar10":
        names = {"batches.meta.txt": ["airplane", "automobile", *map(str, range(2, 10))]}
        files = {f"data_batch_{i}.bin": [(i,), (i + 1,)] for i in range(1, 6)}
        files["test_batch.bin"] = [(0,), (9,)]
        prefix = "cifar-10-batches-bin/"
    else:
        names = {
            "coarse_label_names.txt": [f"coarse{i}" for i in range(20)],
            "fine_label_names.txt": [f"fine{i}" for i in range(100)],
        }
        files = {"train.bin": [(1, 11), (2, 22)], "test.bin": [(3, 99)]}
        prefix = "cifar-100-binary/"
    content = {prefix + name: ("\n".join(lines) + "\n\n").encode() for name, lines in names.items()}
    for name, labels in files.items():
        content[prefix + name] = b"".join(
            cifar_record(each, 10 * each[-1] % 250) for each in labels
        )
    archive = tar(tmp_path / "original.tar.gz", content, "w:gz")
    original = builder._cifar_info
    monkeypatch.setattr(
        builder,
        "_cifar_info",
        property(lambda self: original.fget(self)._replace(url=str(archive))),
    )
    return request.param


@with_tensorflow
def test_cifar_is_prepared_from_its_archive(tmp_path, cifar_tar):
    directory = prepare(config(tmp_path, cifar_tar))
    train, val = stored(directory, "train"), stored(directory, "val")
    labels = {"cifar10": [1, 2, 2, 3, 3, 4, 4, 5, 5, 6], "cifar100": [11, 22]}[cifar_tar]
    assert sorted(e["label"] for e in train) == labels
    assert sorted(e["label"] for e in val) == {"cifar10": [0, 9], "cifar100": [99]}[cifar_tar]
    for example in train + val:
        value = 10 * int(example["label"]) % 250
        assert (example["image"] == [value, value + 1, value + 2]).all()
    first = {"cifar10": ["airplane", "automobile"], "cifar100": ["fine0", "fine1"]}[cifar_tar]
    assert class_names(directory)[:2] == first


@without_tensorflow
def test_what_only_preparing_cifar_needs_is_named(tmp_path, cifar_tar):
    with pytest.raises(InputError, match=r"training does not.*pip install tensorflow-cpu"):
        prepare(config(tmp_path, cifar_tar))


@pytest.mark.parametrize(
    "name",
    ["imagenet2012", "imagenette", "imagenette/320px-v2", "cifar10", "cifar100", "tf_flowers"],
)
def test_the_named_data_sets_are_known_and_labelled(tmp_path, name):
    source = sources_tfds.source(name, pathlib.Path(tmp_path))
    assert source.name.startswith(name.split("/")[0])
    assert source.fingerprint.startswith(f"tfds: {name}")
