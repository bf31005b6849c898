"""Exports of a run: other programs compute from them what the run computes."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import InputError, command_line, exchange, predict, restore
from alexnet_jax.data import eval_batches
from alexnet_jax.rundir import weights_file
from alexnet_jax.train import train_and_evaluate
from configs import alexnet_2012_code, cifar10_13pct
from tests import runs
from tests.prepared import noise
from tests.untrained import save_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory, finished_run):
    """Return the safetensors file of the finished run."""
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    said = exchange.export(finished_run, "safetensors", path)
    assert "verified on 64 images of its validation set: probabilities differ by at most 0" in said
    return path


def _equal(tree, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


def test_safetensors_are_restored_as_the_run_is(saved, finished_run, digits):
    model, variables, config = restore(finished_run)
    assert restore(saved)[0] == model
    assert restore(saved)[2] == config
    assert _equal(restore(saved)[1], variables)
    assert _equal(exchange.load(saved, config), variables)
    images = next(eval_batches(digits, batch_size=3))["image"]
    assert predict(saved, list(images)) == predict(finished_run, list(images))


def test_safetensors_hold_parameters_config_and_class_names(saved, finished_run):
    from safetensors import safe_open

    with safe_open(saved, framework="numpy") as file:
        names, metadata = set(file.keys()), file.metadata()
    layers = ("conv1", "conv2", "conv3", "fc4", "fc5")
    assert names == {"mean_image"} | {f"params/{n}/{p}" for n in layers for p in ("kernel", "bias")}
    assert json.loads(metadata["class_names"]) == [str(i) for i in range(10)]
    assert json.loads(metadata["config"])["num_steps"] == 4
    assert metadata["step"] == str(
        json.loads((finished_run / "result.json").read_text())["best_step"]
    )


def test_a_run_begins_with_them(saved, config, tmp_path, capsys):
    config.init_from = str(saved)
    exchange.check(config)
    config.model.num_classes, config.init_from = 3, str(saved)
    with pytest.raises(InputError, match=r"another network: fc5 \(there \(16, 10\), in"):
        exchange.load(saved, config)


FRESH = """
import sys, jax, numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert not any(name.startswith(("alexnet_jax", "flax")) for name in sys.modules)
images = np.load(sys.argv[2])
assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
np.save(sys.argv[3], program.call(images))
assert np.allclose(program.call(images[:1]), program.call(images)[:1], atol=1e-6)
"""


def test_stablehlo_runs_in_a_process_that_has_only_jax(finished_run, digits, tmp_path):
    command = f"run.py --mode=export --workdir={finished_run} --format=stablehlo"
    assert command_line.main([*command.split(), f"--out={tmp_path / 'net'}"]) == 0
    images = next(eval_batches(digits, batch_size=5))["image"]
    np.save(tmp_path / "images.npy", images)
    arguments = [str(tmp_path / name) for name in ("net", "images.npy", "found.npy")]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, cwd=tmp_path)
    _agree(np.load(tmp_path / "found.npy"), predict(finished_run, list(images), top=10))


def _agree(found, answers):
    """Check (batch, 10) probabilities against `predict`'s of the classes 0 to 9."""
    for row, answer in zip(found, answers, strict=True):
        assert np.abs(row - [dict(answer)[str(i)] for i in range(10)]).max() <= 1e-5


def _networks():
    """Yield configs that have each stage, layer and way of rounding, narrow."""
    tiny = runs.tiny_config("none")
    tiny.model.groups = 2
    yield tiny
    two_columns = alexnet_2012_code.get_config()
    two_columns.model.features, two_columns.model.hidden = (8, 16, 16, 16, 8), (32, 32)
    two_columns.model.num_classes, two_columns.model.initializer = 10, "he_normal"
    two_columns.model.init_stds = ()
    yield two_columns
    local = cifar10_13pct.get_config()
    local.model.features = (8,) * len(local.model.features)
    local.model.input_scale = 0.05  # else the probabilities are 0 and 1
    yield local


@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_onnx_computes_the_same_for_any_number_of_images(tmp_path, number):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config = list(_networks())[number]
    config.dataset.data_dir = str(tmp_path / "none")
    save_run(tmp_path / "run", config)
    said = exchange.export(tmp_path / "run", "onnx", tmp_path / "net.onnx")
    assert f"8 images of noise, as {config.dataset.name!r} is not prepared here" in said
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == [str(i) for i in range(10)]
    size = config.dataset.image_size
    for count in (1, 3):
        images = noise(count, size, size, 3, seed=count)
        (found,) = session.run(None, {"images": images})
        _agree(found, predict(tmp_path / "run", list(images), top=10))


def test_a_run_whose_images_are_elsewhere_is_exported(config, tmp_path):
    runs.one_layer(config.model)
    config.dataset.name, config.dataset.path = "folder", str(tmp_path / "gone")
    save_run(tmp_path / "run", config)
    said = exchange.export(tmp_path / "run", "safetensors", tmp_path / "net")
    assert "8 images of noise, as 'folder' is not prepared here" in said


def test_a_missing_package_is_named_with_its_remedy(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        InputError, match="--format=onnx needs onnx.*: pip install onnx onnxruntime"
    ):
        exchange.export(finished_run, "onnx", tmp_path / "net.onnx")


def test_an_export_that_computes_something_else_is_not_written(finished_run, tmp_path, monkeypatch):
    original = weights_file.save

    def wrong(file, state, record):
        biased = state.replace(mean_image=state.mean_image + 40)
        original(file, biased, record)

    monkeypatch.setattr(weights_file, "save", wrong)
    with pytest.raises(InputError, match="is not written: its probabilities differ by"):
        exchange.export(
            finished_run, "safetensors", tmp_path / "new" / "folder" / "net.safetensors"
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--mode=export needs --out=FILE and --format=safetensors|stablehlo|onnx"),
        (("--format=pth", "--out=x"), "--format=pth"),
        (("--format=onnx", "--out=x", "--mode=predict"), "--format=onnx goes with --mode=export"),
    ],
)
def test_flags_that_do_not_fit_are_refused(finished_run, capsys, flags, message):
    flags = ["run.py", "--mode=export", f"--workdir={finished_run}", *flags]
    assert command_line.main(flags) == 2
    assert message in capsys.readouterr().err


def test_an_existing_file_stays_as_it_is(finished_run, tmp_path, capsys):
    (tmp_path / "net").write_text("mine")
    flags = ["--format=safetensors", f"--out={tmp_path / 'net'}", f"--workdir={finished_run}"]
    assert command_line.main(["run.py", "--mode=export", *flags]) == 2
    assert "net exists; remove it, or name another file" in capsys.readouterr().err
    assert (tmp_path / "net").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "stablehlo"])
def test_a_full_disk_leaves_nothing(finished_run, tmp_path, form):
    """No file may be larger than 20 kB here."""
    out = tmp_path / "new" / "net"
    flags = ["--mode=export", f"--workdir={finished_run}", f"--format={form}", f"--out={out}"]
    ended = runs.run(*flags, largest_file=20_480)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: {out.parent} cannot be written")
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-100], "is damaged"),
        (
            lambda content: content.replace(b'"step"', b'"stop"'),
            r"is damaged \(KeyError\('step'\)\)",
        ),
        (
            lambda content: content.replace(b"alexnet_jax 1", b"alexnet_jax 2"),
            "is not of --mode=exp",
        ),
        (lambda content: content.replace(b"mean_image", b"kean_image"), r"is damaged \(mean_image"),
        (lambda content: b"PK\x03\x04" + content, "is a pickle"),
    ],
)
def test_a_damaged_file_is_refused(saved, tmp_path, damage, message):
    path = tmp_path / "net.safetensors"
    path.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(InputError, match=message):
        restore(path)


def test_a_weights_file_is_no_place_to_train_in(saved, config, tmp_path):
    path = shutil.copy(saved, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="net.safetensors cannot be made or written"):
        train_and_evaluate(config, path)
