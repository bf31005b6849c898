"""The runs of the fine-tuning experiment, none of which is trained here."""

import json

import pytest

from alexnet_jax import InputError
from experiments.paper import finetune
from experiments.runs import trials
from tests.prepared import make_folder

NARROW = ("--config.model.hidden=(64, 64)", "--config.learning_rate=0.01")


def test_few_images_are_the_first_of_each_class_and_all_held_out_ones(tmp_path):
    folder = make_folder(tmp_path / "pets", train=5, val=3)
    for _ in range(2):  # the second time they are there
        few = finetune.few_images(folder, 2, tmp_path / "few")
    found = sorted(str(path.relative_to(few)) for path in few.rglob("*.png"))
    train = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    assert found == train + [f"val/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert (few / "val/dog/2.png").read_bytes() == (folder / "val/dog/2.png").read_bytes()
    with pytest.raises(InputError, match="cat has 5 images of --per_class=6"):
        finetune.few_images(folder, 6, tmp_path / "more")
    with pytest.raises(InputError, match="nowhere/train cannot be listed"):
        finetune.few_images(tmp_path / "nowhere", 1, tmp_path / "more")


def test_all_runs_have_the_same_schedule_and_only_the_pretrained_one_other_images(tmp_path):
    workdir = tmp_path / "runs"
    found = finetune.runs_of(NARROW, tmp_path / "all", tmp_path / "few", workdir, [0, 1])
    names = ["pretrained", *2 * ("scratch", "probe", "finetune")]
    assert [trial.name for trial in found] == names
    assert [trial.seed for trial in found] == [0, 0, 0, 0, 1, 1, 1]
    configs = [trial.config() for trial in found]
    for name in (*finetune.SCHEDULE, "batch_size", "learning_rate", "model", "augment"):
        values = [config[name] for config in configs]
        assert all(value == values[0] for value in values), name
    assert [config.dataset.path for config in configs] == [
        str(tmp_path / "all"),
        *6 * [str(tmp_path / "few")],
    ]
    pretrained = found[0].directory(workdir)
    for trial, config in zip(found, configs, strict=True):
        loaded = trial.name in ("probe", "finetune")
        assert config.init_from == (str(pretrained) if loaded else "")
        assert str(tmp_path) not in trials.command(trial)
    frozen = dict(configs[2].lr_multipliers)
    assert frozen == {f"conv{i}/*": 0.0 for i in range(1, 6)} | {"fc6/*": 0.0, "fc7/*": 0.0}


def test_the_summary_is_over_the_seeds_that_have_ended():
    def run(name, status, error):
        errors = dict.fromkeys(finetune.trial_records.ERRORS, error)
        return {"name": name, "status": status} | (errors if status == "finished" else {})

    runs = [run("scratch", "finished", 0.5), run("scratch", "finished", 0.6)]
    runs += [run("scratch", "unfinished", None), run("finetune", "finished", 0.25)]
    found = finetune.summary(runs)
    assert found["scratch"]["top1_error"] == pytest.approx({"mean": 0.55, "std": 0.0707107, "n": 2})
    assert found["finetune"]["top1_error"] == {"mean": 0.25, "std": None, "n": 1}
    assert found["probe"]["top5_error"]["n"] == 0
    json.dumps(found)
