"""A network with as many outputs as the data set has classes, where the config leaves that open."""

import importlib
import json
import shutil

import pytest

from alexnet_jax import InputError
from alexnet_jax import config as config_lib
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.inspect import summary
from alexnet_jax.train import train_and_evaluate
from tests.fuzz_configs import command
from tests.prepared import make_folder
from tests.runs import TINY

train = importlib.import_module("alexnet_jax.train")  # the module: the package has the function


class Compiled(Exception):
    """Raised in place of compiling; holds what would have been compiled."""


@pytest.fixture
def uncompiled(monkeypatch):
    """Stop runs where they would be compiled."""

    def programs(setting, state):
        raise Compiled(setting.config.model.num_classes, state.params["fc5"]["kernel"].shape[1])

    monkeypatch.setattr(train, "compile_programs", programs)


def test_it_is_read_from_the_data_and_recorded_before_anything_is_compiled(
    config, tmp_path, uncompiled
):
    pets = make_folder(tmp_path / "pets", classes=("cat", "cow", "dog"))
    config.model.num_classes, config.dataset.name = 0, "folder"
    config.dataset.path, config.dataset.data_dir = str(pets), str(tmp_path)
    workdir = tmp_path / "run"
    for _ in range(2):  # the second time from the recorded config
        with pytest.raises(Compiled) as caught:
            train_and_evaluate(config, workdir)
        assert caught.value.args == (3, 3)
    assert config_lib.load(workdir / "config.json").model.num_classes == 3
    assert config.model.num_classes == 0  # the caller's

    for split in ("train", "val"):
        shutil.copytree(pets / split / "cat", pets / split / "ant")
    with pytest.raises(InputError, match=r"holds a run with model.num_classes=3 \(now 4\)"):
        train_and_evaluate(config, workdir)


def test_a_pretrained_network_gets_as_many_outputs_as_there_are_classes(
    config, tmp_path, finished_run, uncompiled, capsys
):
    config.model.num_classes, config.dataset.name = 0, "folder"
    config.dataset.path = str(make_folder(tmp_path / "pets", classes=("cat", "cow", "dog")))
    config.dataset.data_dir = str(tmp_path / "data")
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere does not exist; give a run directory"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()
    config.init_from = str(finished_run)
    with pytest.raises(Compiled, match=r"3, 3"):
        train_and_evaluate(config, tmp_path / "run")
    assert "loaded conv1, conv2, conv3, fc4" in capsys.readouterr().err


def test_one_class_is_refused_before_anything_is_made(config, tmp_path):
    config.model.num_classes, config.dataset.name = 0, "folder"
    config.dataset.path = str(make_folder(tmp_path / "pets", classes=("cat",)))
    config.dataset.data_dir = str(tmp_path / "data")
    with pytest.raises(InputError, match="one class, 'cat'; at least two are needed"):
        train_and_evaluate(config, tmp_path / "run")
    assert not list(tmp_path.rglob("*array_record*")) and not (tmp_path / "run").exists()


def test_a_run_goes_on_and_is_evaluated_whether_it_is_given_or_not(config, tmp_path, finished_run):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    config.model.num_classes, config.num_steps = 0, 4
    result = json.loads((workdir / "result.json").read_text())
    assert train_and_evaluate(config, workdir) == result
    assert config_lib.load(workdir / "config.json").model.num_classes == 10
    assert evaluate_checkpoint(workdir, config)["top1_error"] == result["top1_error"]
    data_dir = f"--config.dataset.data_dir={config.dataset.data_dir}"
    arguments = (*TINY, data_dir, f"--workdir={workdir}", "--config.num_steps=4",
                 "--config.checkpoint_every_steps=2", "--config.model.num_classes=0")  # fmt: skip
    code, out, err = command(*arguments)
    assert code == 0, err
    assert f"top-5 {result['top5_error']:.2%}" in out  # which is shown of more than five classes


def test_the_summary_reads_it_from_the_folder(config, tmp_path):
    config.model.num_classes, config.dataset.name = 0, "folder"
    config.dataset.path = str(make_folder(tmp_path / "pets", classes=("cat", "cow", "dog")) / "val")
    [last] = [line for line in summary(config).splitlines() if line.startswith("fc5")]
    assert last.split()[1:3] == ["3", f"{16 * 3 + 3}"]
    assert not (tmp_path / "alexnet_jax").exists()
