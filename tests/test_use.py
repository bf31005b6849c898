"""The package in Python: training, inputs and features of a run, class names, locked configs."""

import importlib
import json
import os
import pkgutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import alexnet_jax
from alexnet_jax import InputError, configs, features, predict, preprocess, restore, train
from alexnet_jax.rundir import Restored
from tests import runs
from tests.agreement import agree
from tests.reference import network
from tests.untrained import save_run

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (35, 80, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return the directory of a run of random weights whose outputs are scaled when testing."""
    config = runs.tiny_config("none")
    config.model.dropout_scaling = "test"
    path = tmp_path_factory.mktemp("use") / "run"
    save_run(path, config, [f"class {i}" for i in range(10)])
    return path


def test_restore_unpacks_into_three_and_names_the_classes(workdir):
    model, variables, config = restored = restore(workdir)
    assert (restored.model, restored.config) == (model, config)
    assert restored.variables is variables
    assert restored.class_names == tuple(f"class {i}" for i in range(10))
    assert restored.step == 0
    assert restore(str(workdir)).class_names == restored.class_names


def test_features_are_those_of_the_reference(workdir):
    _, variables, config = run = restore(workdir)
    inputs = preprocess(run, IMAGES)
    assert (inputs.shape, inputs.dtype) == ((35, 67, 67, 3), np.float32)
    params = jax.tree.map(np.asarray, variables["params"])
    arrays = network.forward(config.model.to_dict(), params, inputs[::17])  # of two batches
    after_relu = {"conv1": "relu1", "conv3": "relu3", "fc4": "relu4"}
    for layer in (*after_relu, "fc5", "max_pool3", "dropout4"):
        found = features(run, IMAGES, layer)
        assert found.dtype == np.float32
        agree(found[::17], arrays[after_relu.get(layer, layer)], rtol=1e-5, what=layer)
    with pytest.raises(InputError, match="layer='fc9': the layers are conv1, .*did you mean 'fc"):
        features(run, IMAGES, "fc9")


def test_a_layer_without_relu_directly_after_it_is_given_as_it_is(tmp_path):
    config = runs.tiny_config("none")
    config.model.stages = (("max_pool", "relu"), ("relu",), ("max_pool",))
    save_run(tmp_path / "run", config)
    _, variables, config = run = restore(tmp_path / "run")
    params = jax.tree.map(np.asarray, variables["params"])
    arrays = network.forward(config.model.to_dict(), params, preprocess(run, IMAGES[:2]))
    for layer, name in {"conv1": "conv1", "conv2": "relu2", "conv3": "conv3"}.items():
        agree(features(run, IMAGES[:2], layer), arrays[name], rtol=1e-5, what=layer)


def test_the_default_layer_is_fc7(tmp_path):
    config = runs.tiny_config("none")
    runs.all_layers(config.model)
    save_run(tmp_path / "run", config)
    run = restore(tmp_path / "run")
    found = features(run, IMAGES[0])
    assert found.shape == (1, 16)
    np.testing.assert_array_equal(found, features(run, IMAGES[:1], "relu7"))
    assert features(run, IMAGES[0], "fc6").shape == (1, 16)
    assert features(run, IMAGES[0], "fc8").min() < 0


def test_no_program_of_the_same_config_before_a_change_is_used(workdir):
    run = restore(workdir)
    logits, [answer] = features(run, IMAGES[0], "fc5"), predict(run, IMAGES[0])
    run.config.model.dropout_scaling = "train"
    assert not np.allclose(features(run, IMAGES[0], "fc5"), logits)
    assert predict(run, IMAGES[0]) != [answer]


def test_inputs_are_the_centre_crops_less_the_mean_image(workdir):
    _, variables, _ = restore(workdir)
    square = RNG.integers(0, 256, (72, 72, 3), np.uint8)  # as stored: neither cut nor scaled
    mean_image = np.asarray(variables["statistics"]["mean_image"])
    expected = square[2:69, 2:69].astype(np.float32) - mean_image[2:69, 2:69]
    np.testing.assert_allclose(preprocess(workdir, square), expected[None], atol=1e-4)


def test_paths_pil_images_and_arrays_are_the_same_one_or_many(workdir, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, IMAGES, strict=False):
        Image.fromarray(image).save(path)
    run = restore(workdir)
    opened = [Image.open(path) for path in paths]
    for function in (predict, preprocess, features):
        arguments = ["fc4"] if function is features else []
        of_arrays = function(run, IMAGES[:3], *arguments)
        on_device = jnp.asarray(IMAGES[:3])
        for images in (paths, list(map(str, paths)), opened, [*IMAGES[:3]], iter(paths), on_device):
            np.testing.assert_equal(function(run, images, *arguments), of_arrays)
        for image in (paths[0], str(paths[0]), opened[0], IMAGES[0], on_device[0]):
            np.testing.assert_allclose(  # another batch size, and so another rounding
                _numbers(function(run, image, *arguments)), _numbers(of_arrays)[:1], rtol=1e-4
            )
    assert opened[0].getpixel((0, 0)) == tuple(IMAGES[0, 0, 0])  # still open
    assert predict(workdir=workdir, images=paths, top=5) == predict(run, paths)


def _numbers(found):
    if isinstance(found, np.ndarray):
        return found
    return np.array([[probability for _, probability in answer] for answer in found])


def test_a_pil_image_is_turned_as_its_orientation_says(workdir, tmp_path):
    image = Image.fromarray(IMAGES[0])
    exif = image.getexif()
    exif[0x0112] = 6  # the first row is the right-hand side
    image.save(tmp_path / "turned.png", exif=exif)
    turned = preprocess(workdir, image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(preprocess(workdir, tmp_path / "turned.png"), turned)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(preprocess(workdir, opened), turned)
        assert opened.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        (IMAGES[:2].astype(np.float32), "image 0 is an array of float32: give uint8, 0 to 255"),
        ([IMAGES[0], IMAGES[0, ..., :1]], r"image 1 cannot be decoded .*of shape \(80, 90, 1\)"),
        (IMAGES[0, :0], r"image 0 cannot be decoded .*of shape \(0, 90, 3\)"),
        (IMAGES[0, 0, :, 0], r"image 0 cannot be decoded .*of shape \(90,\)"),
        ([None], "image 0 cannot be decoded .*NoneType is not a path, a PIL image or a uint8"),
        (7, "int is not images: give paths, PIL images or uint8 arrays"),
        ("nowhere.png", "nowhere.png does not exist"),
    ],
)
def test_what_is_no_image_is_named(images, message, workdir):
    run = restore(workdir)
    for function in (preprocess, features):
        with pytest.raises(InputError, match=message):
            function(run, images, *(["fc4"] if function is features else []))


@pytest.mark.parametrize("top", [0, -1, 2.5, "3"])
def test_how_many_classes_are_named_is_at_least_one(top, workdir):
    with pytest.raises(InputError, match=f"top={top!r}: give how many classes to name"):
        predict(workdir, IMAGES[0], top)


def _lines(path):
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_train_calls_back_and_can_be_interrupted_and_called_again(pets, tmp_path):
    """Signals keep their handlers, in the main thread and in another, and so does all else."""
    config = pets
    runs.one_layer(config.model)
    config.augment.crop = 12
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ)
    jax_before = dict(jax.config.values)
    seen = []

    def callback(line):
        now = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ)
        assert now == before
        assert jax.config.values == jax_before
        seen.append(line)
        if len(seen) == 6 and interrupted:
            raise KeyboardInterrupt

    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        train(config, str(tmp_path / "run"), callback)
    assert [(line["step"], line["split"]) for line in seen] == [
        (1, "train"), (2, "train"), (2, "val"), (3, "train"), (4, "train"), (4, "val")
    ]  # fmt: skip
    interrupted, first = False, seen[:3]
    results, seen[:] = [], []
    thread = threading.Thread(
        target=lambda: results.append(train(config, tmp_path / "run", callback))
    )
    thread.start()
    thread.join()
    assert seen[0]["step"] == 3  # after the last checkpoint
    with (tmp_path / "run" / "metrics.jsonl").open() as file:
        assert [json.loads(line) for line in file] == first + seen
    assert results == [json.loads((tmp_path / "run" / "result.json").read_text())]
    straight = train(config, tmp_path / "straight")
    assert _lines(tmp_path / "run") == _lines(tmp_path / "straight")
    assert results[0]["top1_error"] == straight["top1_error"]
    with pytest.raises(InputError, match="holds a run with seed=0"):
        config.seed = 1
        train(config, tmp_path / "run")


def test_every_config_is_locked_against_misspelt_fields(workdir):
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    recipes = [importlib.import_module(f"alexnet_jax.configs.{name}") for name in names]
    assert len(recipes) > 8
    for config in [*(recipe.get_config() for recipe in recipes), restore(workdir).config]:
        groups = [config, *(value for value in config.values() if isinstance(value, ConfigDict))]
        assert len(groups) > 4
        for group in groups:
            with pytest.raises(AttributeError):
                group.learnin_rate = 1.0


def test_names_of_the_package_are_functions_and_modules_below():
    """As `predict`: the function in the package, the rest by the full name of the module."""
    from alexnet_jax.evaluate import evaluate_checkpoint
    from alexnet_jax.step import train_step
    from alexnet_jax.train import train_and_evaluate

    assert all(map(callable, (evaluate_checkpoint, train_step, train_and_evaluate)))
    for name in alexnet_jax.__all__:
        assert hasattr(alexnet_jax, name)
    assert alexnet_jax.train is train
    assert issubclass(Restored, tuple)
