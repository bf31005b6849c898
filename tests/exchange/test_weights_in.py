"""Networks of Caffe and torchvision make here the function that they make there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from PIL import Image
from safetensors.numpy import save, save_file

from alexnet_jax import InputError, command_line, exchange, predict
from alexnet_jax import model as model_lib
from alexnet_jax.configs import caffe_alexnet as packaged
from alexnet_jax.layers import walk
from alexnet_jax.state import abstract_state
from configs import caffe_alexnet, caffenet, torchvision_alexnet
from tests.exchange import foreign

FEATURES, HIDDEN, CLASSES = (16, 24, 32, 16, 12), (20, 24), 7
STAGES = {
    "alexnet": (*[("relu", "lrn", "pool")] * 2, ("relu",), ("relu",), ("relu", "pool")),
    "caffenet": (*[("relu", "pool", "lrn")] * 2, ("relu",), ("relu",), ("relu", "pool")),
    "torchvision": (*[("relu", "pool")] * 2, ("relu",), ("relu",), ("relu", "pool")),
}
TORCHVISION = dict(
    zip(
        ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"),
        (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))),
        strict=True,
    )
)


def _narrow(recipe):
    config = recipe.get_config()
    config.model.features, config.model.hidden = FEATURES, HIDDEN
    config.model.num_classes = CLASSES
    return config


def _agrees(config, variables, squares, expected):
    """Check logits and the last map of each layer against channel-first `expected`."""
    crop, model = config.augment.crop, model_lib.from_config(config)
    low = (config.dataset.image_size - crop) // 2
    images = (squares - variables["statistics"]["mean_image"])[
        :, low : low + crop, low : low + crop
    ]
    apply = jax.jit(
        lambda x: model.apply({"params": variables["params"]}, x, mutable="intermediates")
    )
    logits, noted = apply(images)
    maps = {f"conv{i + 1}": f"{stages[-1]}{i + 1}" for i, stages in enumerate(config.model.stages)}
    maps |= {"fc6": "relu6", "fc7": "relu7"}
    found = {name: np.asarray(noted["intermediates"][stage][0]) for name, stage in maps.items()}
    for name, other in expected.items():
        ours = np.asarray(logits) if name == "fc8" else found[name]
        ours = np.moveaxis(ours, -1, 1) if ours.ndim == 4 else ours
        assert np.abs(other).max() > 0.1
        assert np.abs(ours - other).max() <= 1e-5 * np.abs(other).max(), name


@pytest.mark.parametrize(
    ("net", "v1", "legacy", "double"),
    [("alexnet", True, True, False), ("caffenet", False, False, True)],
)
def test_a_caffemodel_makes_the_function_of_caffe(tmp_path, net, v1, legacy, double):
    layers = foreign.random_layers(FEATURES, HIDDEN, CLASSES, groups=2)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(foreign.caffemodel(layers, v1=v1, legacy=legacy, double=double))
    mean = np.random.default_rng(1).uniform(90, 130, (3, 256, 256)).astype(np.float32)  # BGR
    (tmp_path / "mean.binaryproto").write_bytes(foreign.blob(mean, legacy=True).SerializeToString())
    config = _narrow(caffe_alexnet if net == "alexnet" else caffenet)
    squares = foreign.photographs(256)

    inputs = squares.transpose(0, 3, 1, 2)[:, ::-1].astype(np.float64)  # BGR
    means = np.array([104.00698793, 116.66876762, 122.67891434])[:, None, None]
    for subtracted, file in ((mean, tmp_path / "mean.binaryproto"), (means, None)):
        crops = (inputs - subtracted)[:, :, 14:241, 14:241]
        expected = foreign.forward(layers, crops, STAGES[net], groups=2)
        _agrees(config, exchange.load(path, config, mean=file), squares, expected)
        if v1:  # once is enough
            break


@pytest.mark.parametrize("scale", [None, 0.01])
def test_safetensors_of_torchvision_make_its_function(tmp_path, scale):
    layers = foreign.random_layers(FEATURES, HIDDEN, CLASSES)
    arrays = {}
    for name, theirs in TORCHVISION.items():
        arrays |= dict(zip((f"{theirs}.weight", f"{theirs}.bias"), layers[name], strict=True))
    save_file(arrays, tmp_path / "net.safetensors")
    config = _narrow(torchvision_alexnet)
    config.model.input_scale = scale or config.model.input_scale
    squares = foreign.photographs(256)

    channels = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    inputs = (squares / 255 - channels[0]) / channels[1]
    crops = inputs.transpose(0, 3, 1, 2)[:, :, 16:240, 16:240]
    expected = foreign.forward(layers, crops, STAGES["torchvision"], first_padding=2)
    _agrees(config, exchange.load(tmp_path / "net.safetensors", config), squares, expected)


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [(caffe_alexnet, 60_965_224), (caffenet, 60_965_224), (torchvision_alexnet, 61_100_840)],
)
def test_the_recipes_have_as_many_parameters_as_the_published_networks(recipe, parameters):
    config = recipe.get_config()
    parts = walk(config.model, config.augment.crop)
    assert sum(part.parameters for part in parts) == parameters
    sides = [part.output[0] for part in parts if part.name.startswith("max_pool")]
    assert sides == [27, 13, 6]


def _model():
    return foreign.caffemodel(foreign.random_layers(FEATURES, HIDDEN, CLASSES, groups=2))


def _with_nan():
    layers = foreign.random_layers(FEATURES, HIDDEN, CLASSES, groups=2)
    layers["conv4"][1][3] = np.nan
    return foreign.caffemodel(layers)


def _tensors():
    return save({"encoder.weight": np.zeros((3, 3), np.float32)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: _model()[:-1000], "is not a whole .caffemodel"),
        (lambda: _model()[:5000], "is not a whole .caffemodel"),
        (lambda: bytes(5000), "is not a whole .caffemodel"),
        (
            lambda: foreign.caffemodel({"conv1": (np.ones(3), np.ones(3))}),
            r"no layer fits: conv1 \(there missing,",
        ),
        (
            lambda: _model().replace(bytes([16, 3, 11, 11]), bytes([16, 3, 11, 12])),
            "5808 numbers for an array of shape",
        ),
        (_with_nan, "conv4/bias is not finite"),
        (
            lambda: foreign.caffemodel({"ip1": (np.ones((3, 3)), np.ones(3))}),
            r"no layer fits: conv1 \(",
        ),
        (foreign.zip_file, "is a pickle, as PyTorch writes"),
        (foreign.legacy_pickle, "is a pickle, as PyTorch writes"),
        (lambda: b"<html>404 Not Found</html>", "is not a whole .caffemodel"),
        (lambda: b"", "is not a whole .caffemodel"),
        (lambda: _tensors()[:-1], "is damaged"),
        (lambda: _tensors()[:20], "is damaged"),
        (_tensors, r"no layer fits: conv1 \(there missing,"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_in_one_line(tmp_path, content, message):
    config = _narrow(caffe_alexnet)
    path = tmp_path / "weights"
    path.write_bytes(content())
    config.init_from = str(path)
    with pytest.raises(InputError, match=message) as error:
        exchange.check(config)
    assert "\n" not in str(error.value)


def test_the_lines_for_caffe_make_a_file_that_is_used_like_a_run(tmp_path, monkeypatch, capsys):
    """Of docs/weights.md, on a narrow network: the answers are those of the float64 one."""
    config = _narrow(caffe_alexnet)
    monkeypatch.setattr(packaged, "get_config", lambda: config)
    monkeypatch.chdir(tmp_path)
    layers = foreign.random_layers(FEATURES, HIDDEN, CLASSES, groups=2)
    (tmp_path / "bvlc_alexnet.caffemodel").write_bytes(foreign.caffemodel(layers))
    mean = np.random.default_rng(1).uniform(90, 130, (3, 256, 256)).astype(np.float32)  # BGR
    (tmp_path / "imagenet_mean.binaryproto").write_bytes(foreign.blob(mean).SerializeToString())
    names = [f"n0{i} class {i}, or {i}" for i in range(CLASSES)]
    (tmp_path / "synset_words.txt").write_text("\n".join(names) + "\n")
    exec(foreign.block_of_docs('"bvlc_alexnet.caffemodel", "caffe.safetensors"'), {})

    squares = foreign.photographs(256)
    crops = (squares[..., ::-1].transpose(0, 3, 1, 2) - mean)[:, :, 14:241, 14:241]
    logits = foreign.forward(layers, crops, STAGES["alexnet"], groups=2)["fc8"]
    best = [names[i] for i in logits.argmax(1)]
    assert [answer[0][0] for answer in predict("caffe.safetensors", squares)] == best
    exec(foreign.block_of_docs("exchange.load"), found := {"images": squares})
    np.testing.assert_allclose(
        found["probabilities"], scipy.special.softmax(logits, 1), rtol=1e-3, atol=1e-5
    )

    Image.fromarray(squares[0]).save("china.png")
    flags = ["run.py", "--mode=predict", "--workdir=caffe.safetensors"]
    assert command_line.main([*flags, "--images=china.png"]) == 0
    assert best[0] in capsys.readouterr().out.splitlines()[1]
    for mode in ("predict", "evaluate"):
        flags[1] = f"--mode={mode}"
        assert command_line.main([*flags, f"--images={tmp_path}"]) == 2
        assert "caffe.safetensors is a file: name the directory" in capsys.readouterr().err

    with pytest.raises(InputError, match="caffe.safetensors exists; remove it"):
        exchange.convert("bvlc_alexnet.caffemodel", "caffe.safetensors", config, names)
    with pytest.raises(InputError, match="6 class names, but config.model.num_classes=7"):
        exchange.convert("bvlc_alexnet.caffemodel", "another", config, names[:6])
    with pytest.raises(InputError, match="^path=nowhere does not exist; give a run directory"):
        exchange.convert("nowhere", "another", config, names)


def test_a_file_larger_than_protobuf_allows_is_not_read(tmp_path):
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(2**40)  # sparse
    config = _narrow(caffe_alexnet)
    config.init_from = str(tmp_path / "weights")
    with pytest.raises(InputError, match="weights is larger than 2 GiB"):
        exchange.check(config)


def test_another_number_of_classes_keeps_the_other_layers(tmp_path, capsys):
    config = _narrow(caffe_alexnet)
    (tmp_path / "net.caffemodel").write_bytes(_model())
    config.init_from, config.model.num_classes = str(tmp_path / "net.caffemodel"), 3
    abstract = abstract_state(config)
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    state = exchange.initialised(fresh, config)
    assert np.allclose(state.mean_image[5, 7], [122.67891434, 116.66876762, 104.00698793])
    assert capsys.readouterr().err.splitlines() == [
        f"init_from={config.init_from}: loaded conv1, conv2, conv3, conv4, conv5, fc6, fc7,"
        " the mean image",
        f"init_from={config.init_from}: initialised fc8 (there (24, 7), in config.model (24, 3))",
    ]
