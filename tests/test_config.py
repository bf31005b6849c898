"""Configs: every recipe is valid, and an invalid field is refused by name."""

import importlib
import json
import os
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from alexnet_jax import command_line
from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.fields import FIELDS
from alexnet_jax.prepare import prepare
from alexnet_jax.rundir import resume
from configs import alexnet, alexnet_two_device
from tests import recipes
from tests.runs import within


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_is_valid(name):
    config_lib.validate(recipes.of_name(name))


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_typo_in_a_recipes_fields_raises_where_it_is_made(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    groups = [value for value in config.model.values() if isinstance(value, ConfigDict)]
    groups += [config, config.plateau, config.model, config.dataset, config.augment]
    for group in groups:
        with pytest.raises(AttributeError, match="learning_rat"):
            group.learning_rat = 3


def test_a_home_directory_is_not_missed_before_it_is_needed(monkeypatch, config):
    """As in a container whose user is not in /etc/passwd."""
    monkeypatch.setattr(pathlib.Path, "expanduser", _no_home)
    config.dataset.data_dir = "~/data"
    config_lib.validate(config)
    with pytest.raises(InputError, match="config.dataset.data_dir=~/data: there is no such home"):
        prepare(config.dataset)


def _no_home(path):
    raise RuntimeError("Could not determine home directory.")


def test_the_default_recipe_has_every_field():
    assert {n for n, _ in config_lib.flatten(alexnet.get_config())} == set(config_lib.FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("model.num_classes", 1),
        ("dataset.val_fraction", 0.0),
        ("dataset.val_fraction", 1.0),
        ("batch_size", 0),
        ("batch_size", True),
        ("num_steps", 0),
        ("num_steps", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("weight_decay", float("inf")),
        ("dtype", "float16"),
        ("parallel", "tpu"),
        ("plateau.factor", 1.0),
        ("plateau.patience", 0),
        ("model.groups", 3),
        ("model.cross_layers", ("conv6",)),
        ("model.cross_layers", ("conv3", "conv3")),
        ("model.features", (96, 256, 384, 384)),
        ("model.features", (96, 256, 384, 384, 0)),
        ("model.features", (96, 256, 384, 384, 2.0)),
        ("model.features", (96, 256, 384, 384, 10**15)),
        ("model.dropout", 1.0),
        ("model.lrn.k", 0.0),
        ("model.lrn.n", 0),
        ("model.initializer", "xavier"),
        ("model.biases", (0.0,) * 7),
        ("model.layers", ("conv1", "conv3")),
        ("model.layers", ()),
        ("model.stages", (("relu", "norm"),) * 5),
        ("model.stages", (("relu", "relu"),) * 5),
        ("model.stages", (("relu",),) * 4),
        ("model.init_stds", (0.01,) * 7),
        ("model.init_std", 0.0),
        ("model.init_stds", (0.01,) * 7 + (0.0,)),
        ("model.cross_layers", ("conv1",)),
        ("lr_multipliers", (("*/bias",),)),
        ("lr_multipliers", (("*/bias", -1.0),)),
        ("weight_decays", ("*/bias", 0.0)),
        ("milestones", ((1, "*", 0.1),)),
        ("milestones", ((25, 0.1),)),
        ("milestones", ((25, "*", float("nan")),)),
        ("schedule", "cosine"),
        ("augment.shared_by", 0),
        ("augment.mean_crop", "none"),
        ("augment.colour_rule", "pca"),
        ("augment.colour_epochs", -1),
        ("augment.test_crops", "five"),
        ("dataset.name", ""),
        ("dataset.encoding", "png"),
        ("dataset.on_error", "ignore"),
        ("augment.flip", 1),
        ("augment.colour_std", -0.1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    config = alexnet.get_config()
    *path, last = field.split(".")
    node = config
    for name in path:
        node = node[name]
    with node.ignore_type():
        node[last] = value
    with pytest.raises(InputError, match=rf"config\.{field}=") as caught:
        config_lib.validate(config)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_refused_by_name():
    config = alexnet.get_config()
    with config.unlocked():
        del config.momentum
    with pytest.raises(InputError, match="lacks the field 'momentum'"):
        config_lib.validate(config)


def test_the_message_on_an_unknown_field_suggests_the_nearest():
    config = alexnet.get_config()
    with config.unlocked():
        config.learning_rat = 0.1
    with pytest.raises(InputError, match="'learning_rat'; did you mean 'learning_rate'"):
        config_lib.validate(config)
    assert "did you mean 'augment.crop'" in str(config_lib.unknown_field("crop"))


def test_a_crop_larger_than_the_stored_image_is_refused():
    config = alexnet.get_config()
    config.dataset.image_size = 200
    with pytest.raises(InputError, match=r"crop=227 is larger .*image_size=200"):
        config_lib.validate(config)


def test_the_smallest_crop_of_the_original_geometry_is_67():
    config = alexnet.get_config()
    config.augment.crop = 67
    config_lib.validate(config)
    config.augment.crop = 66
    with pytest.raises(InputError, match="crop=66 is too small.*the pooling after conv5"):
        config_lib.validate(config)


def test_columns_that_do_not_divide_the_feature_maps_are_refused():
    config = alexnet.get_config()
    config.model.groups = 2
    config.model.features = (96, 256, 384, 383, 256)
    with pytest.raises(InputError, match="groups=2 does not divide the 383 units of conv4"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.groups": 1}, "give --config.model.groups=2"),
        ({"model.num_classes": 5}, r"num_classes=5 is odd; take parallel='pmap'"),
        ({"model.lrn.within_groups": False}, r"lrn\.within_groups must be True"),
        ({"model.hidden": (4096, 4095)}, "does not divide the 4095 units of fc7"),
        ({"model.layers": ("conv1", "conv2", "conv3", "conv4", "local5")}, "local5 is locally"),
    ],
)
def test_a_network_that_cannot_be_split_is_refused(changes, message):
    config = alexnet_two_device.get_config()
    config_lib.validate(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": ((9, "*", 0.1),)}, "milestones count only with --config.schedule=epochs"),
        (
            {"lr_multipliers": (("conv6/*", 2.0),)},
            "lr_multipliers names 'conv6/.', which no parameter",
        ),
        ({"weight_decays": (("bias", 0.0),)}, "weight_decays names 'bias', which no parameter"),
        ({"schedule": "epochs", "milestones": ((9, "fc9/*", 0.1),)}, "milestones names 'fc9/.'"),
        ({"model.initializer": "he_normal", "model.init_stds": (0.1,) * 8}, "init_stds has no eff"),
        ({"model.ceil_mode": True, "model.pool.stride": 4}, "stride=4 is larger than its window 3"),
    ],
)
def test_rules_without_effect_are_refused(changes, message):
    config = alexnet.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        config_lib.validate(config)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_config_is_read_from_its_file_unchanged(tmp_path, name):
    config = recipes.of_name(name)
    config.num_steps = 7
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.load(tmp_path / "config.json").to_dict() == config.to_dict()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"seed": 0}'])
def test_a_damaged_config_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="config"):
        config_lib.load(tmp_path / "config.json")


def test_a_run_is_resumed_only_with_its_own_config(tmp_path):
    old, new = alexnet.get_config(), alexnet.get_config()
    new.num_epochs, new.dataset.data_dir = 100, "/elsewhere"
    config_lib.refuse_changes(old, new, tmp_path)
    new.model.dropout = 0.3
    with pytest.raises(InputError, match=r"model\.dropout=0\.5 \(now 0\.3\)"):
        config_lib.refuse_changes(old, new, tmp_path)


def test_a_number_of_classes_that_is_left_to_the_data_is_that_of_the_run(tmp_path):
    old, new = alexnet.get_config(), alexnet.get_config()
    new.model.num_classes = 0
    config_lib.validate(new)
    config_lib.refuse_changes(old, new, tmp_path)
    found = config_lib.with_num_classes(new, 7)
    assert (found.model.num_classes, new.model.num_classes) == (7, 0)
    with pytest.raises(InputError, match=r"model\.num_classes=1000 \(now 7\)"):
        config_lib.refuse_changes(old, found, tmp_path)
    assert config_lib.with_num_classes(old, 7).model.num_classes == 1000
    halved = alexnet_two_device.get_config()
    halved.model.num_classes = 0
    config_lib.validate(halved)
    with pytest.raises(InputError, match=r"num_classes=7 is odd; take parallel='pmap'"):
        config_lib.with_num_classes(halved, 7)


def test_a_config_of_an_earlier_version_gets_what_that_version_did(config):
    old = config.to_dict()
    del old["dataset"]["val_fraction"], old["on_nan"]
    assert config_lib.from_dict(old).to_dict() == config_lib.from_dict(config.to_dict()).to_dict()


def test_a_pipe_instead_of_a_file_of_the_run_is_refused_without_waiting(tmp_path):
    for name in ("config.json", "rewinds.json", "result.json"):
        os.mkfifo(tmp_path / name)
    with within(5):
        with pytest.raises(InputError, match=r"config\.json cannot be read \(not a regular file\)"):
            config_lib.load(tmp_path / "config.json")
        with pytest.raises(InputError, match=r"rewinds\.json .*not a regular file"):
            resume.rewinds(tmp_path)
        assert resume.finished_result(tmp_path, 1) is None


def test_json_is_written_atomically(tmp_path):
    path = tmp_path / "result.json"
    config_lib.write_json({"step": 1}, path)
    with pytest.raises(TypeError):
        config_lib.write_json({"step": object()}, path)
    assert json.loads(path.read_text()) == {"step": 1}


def test_json_is_on_the_disk_before_it_has_its_name_and_its_name_is_before_anything_else(
    tmp_path, monkeypatch
):
    path, done, replace = tmp_path / "rewinds.json", [], pathlib.Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_ino))
    monkeypatch.setattr(pathlib.Path, "replace", lambda *to: done.append("named") or replace(*to))
    config_lib.write_json(2, path)
    assert done == [path.stat().st_ino, "named", tmp_path.stat().st_ino]


def test_every_field_has_a_meaning_and_help_shows_it(capsys):
    assert command_line.main(["run.py", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, field in FIELDS.items():
        assert field.meaning, name
        assert re.search(rf"^  {re.escape(name)} +{re.escape(field.meaning)}$", shown, re.M), name


def test_a_field_under_its_old_name_is_read_from_runs_and_refused_on_the_command_line(config):
    old = config.to_dict()
    old["rate_factors"] = old.pop("lr_multipliers")
    assert config_lib.from_dict(old) == config_lib.from_dict(config.to_dict())
    with pytest.raises(InputError, match="no field 'rate_factors'; did you mean 'lr_multipliers'"):
        command_line.read_config(["--config=quickstart", "--config.rate_factors=()"])
