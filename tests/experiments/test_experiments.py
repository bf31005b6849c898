"""Experiments: ablations do what their names say; what is reported and what is refused."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import AlexNet, InputError
from alexnet_jax import config as config_lib
from alexnet_jax.layers import walk
from experiments import command_line
from experiments.paper import ablated_configs, ablations, cifar10, figure1
from experiments.reports import comparison, metrics
from experiments.runs import run_process, trial_records, trials
from tests import recipes, runs

RECIPES = sorted((runs.ROOT / "configs").glob("[!_]*.py"))
EIGHT_LAYERS = ("alexnet", "alexnet_two_device", "alexnet_cifar10", "quickstart")


def main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiment", *map(str, arguments)])
    return module.main()


def recipe(name):
    return runs.ROOT / f"configs/{name}.py"


def read(name):
    return command_line.read_config([f"--config={recipe(name)}"])


@pytest.mark.parametrize("name", EIGHT_LAYERS)
def test_each_ablation_changes_what_it_names(name):
    config = read(name)
    found, left_out = ablated_configs.ablations(config)
    expected = {"two_columns": "it has two columns"} if config.model.groups == 2 else {}
    if name in ("alexnet_cifar10", "quickstart"):  # biases of 0, and as many filters in both
        expected["without_conv4"] = "it would be the same as without_conv3"
    assert left_out == expected
    after = {
        name: ablated_configs.changed(config, differences) for name, differences in found.items()
    }
    walks = {name: walk(c.model, c.augment.crop) for name, c in after.items()}
    layers = {name: [part for part in parts if part.kernel] for name, parts in walks.items()}

    def stages(name):
        return [stage for of_layer in after[name].model.stages for stage in of_layer]

    assert after["full"] == config
    assert "lrn" in stages("full") and "lrn" not in stages("no_lrn")
    assert after["no_overlap"].model.pool.window == after["no_overlap"].model.pool.stride
    same = ("no_lrn", "no_colour", "no_crops_flips", "no_dropout", "tanh")
    assert all(layers[name] == layers["full"] for name in same)
    if name != "alexnet_cifar10":  # maps of an even side: 28 to 13 by windows of 3, to 14 by 2
        assert layers["no_overlap"] == layers["full"]
    widths = [np.array(after[name].model.features) for name in ("full", "half_width")]
    np.testing.assert_array_equal(widths[1][:-1] * 2, widths[0][:-1])
    assert layers["half_width"][5:] == layers["full"][5:]  # nothing else is narrower
    assert after["half_width"].model.groups == 1
    both = after.get("two_columns", after["full"])
    assert both.model.groups == 2 and both.model.cross_layers == ("conv3",)
    assert after["no_colour"].augment.colour_std == after["no_dropout"].model.dropout == 0
    uncropped = after["no_crops_flips"]
    assert uncropped.augment.crop == uncropped.dataset.image_size and not uncropped.augment.flip
    assert "relu" not in stages("tanh") and stages("tanh").count("tanh") == 5
    for removed in (2, 3, 4):
        if f"without_conv{removed + 1}" in left_out:
            continue
        without = layers[f"without_conv{removed + 1}"]
        outputs = [layer.activations for layer in layers["full"]]
        assert [layer.activations for layer in without] == outputs[:removed] + outputs[
            removed + 1 :
        ]
        kept = sorted(stages("full"))
        kept.remove("relu")
        assert sorted(stages(f"without_conv{removed + 1}")) == kept


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_command_line_of_an_ablation_gives_its_config(recipe):
    folder = ("--config.dataset.path=images", "--config.model.num_classes=3")
    overrides = folder if recipes.of_name(recipe.stem).dataset.name == "folder" else ()
    config = command_line.read_config([f"--config={recipe}", *overrides])
    found, left_out = ablated_configs.ablations(config)
    assert "full" in found and all(left_out.values())
    for name, differences in found.items():
        read = trials.Trial(name, recipe, overrides, differences, config.seed).config()
        wanted = dict(config_lib.flatten(ablated_configs.changed(config, differences)))
        assert dict(config_lib.flatten(read)) == wanted, name


def test_without_a_crossing_layer_the_layer_in_its_place_crosses():
    config = read("alexnet_two_device")
    found, _ = ablated_configs.ablations(config)
    assert found["without_conv3"]["model.cross_layers"] == ("conv3",)
    assert found["without_conv4"]["model.cross_layers"] == ("conv3",)
    config.model.cross_layers = ("conv3", "conv5")
    found, _ = ablated_configs.ablations(config)
    assert found["without_conv4"]["model.cross_layers"] == ("conv3", "conv4")
    assert found["without_conv5"]["model.cross_layers"] == ("conv3",)


def test_the_table_shows_means_differences_and_their_standard_errors():
    errors = {"full": (0.5, 0.6), "two_columns": (0.5, 0.52), "half_width": (0.6, 0.62, 0.64)}
    errors |= {"no_lrn": (0.58,)}
    each = [
        {"name": name, "seed": seed, "status": "finished", **dict.fromkeys(trial_records.ERRORS, e)}
        for name, of_name in errors.items()
        for seed, e in enumerate(of_name)
    ]
    each.append({"name": "no_lrn", "seed": 1, "status": "failed", "epoch": 2, "failure": "why"})
    variants = ablations.variants(["full", "no_lrn", "two_columns", "half_width", "tanh"])
    table = comparison.summary(variants, each)
    top1 = {name: row["top1_error"] for name, row in table.items()}
    assert top1["full"] == {
        "mean": pytest.approx(0.55),
        "std": pytest.approx(np.std([0.5, 0.6], ddof=1)),
        "n": 2,
        "points_more": 0,
        "standard_error": pytest.approx(10 / np.sqrt(2)),  # deviation of 0.1 / sqrt(2) in both
    }
    assert top1["no_lrn"]["points_more"] == pytest.approx(3)
    assert top1["no_lrn"]["standard_error"] is None
    assert top1["half_width"]["points_more"] == pytest.approx(62 - 51)  # against two columns
    wanted = np.sqrt(2 / 2 + 4 / 3)  # squared deviations in points, over the numbers of seeds
    assert top1["half_width"]["standard_error"] == pytest.approx(wanted)
    assert top1["tanh"]["mean"] is None
    lines = comparison.markdown(table, each).splitlines()
    assert lines[2].startswith("| full | 2 | 55.00 ± 7.07 |  | 55.00 ± 7.07 |  |  |  |")
    assert lines[3].startswith("| no_lrn | 1 | 58.00 | +3.00 | 58.00 | +3.00 | full | not known |")
    assert lines[3].endswith("| 1.4 / 1.2 |")
    assert "| -4.00 ± 5.10 | full | no |" in lines[4]
    assert "| +11.00 ± 1.53 | two_columns | yes |" in lines[5]
    assert "Not in the means: no_lrn, seed 1, failed at epoch 2.0: why" in lines
    assert lines[-1] == "No run has ended of: tanh."


def test_an_ablation_is_trained_once_and_reported_as_run_py_measured_it(
    data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trials, "device", lambda: "a device")
    monkeypatch.setenv("XLA_FLAGS", runs.cpu_devices(1)["XLA_FLAGS"])
    arguments = [
        f"--config={recipe('quickstart')}",
        "--data=digits",
        f"--config.dataset.data_dir={data_dir}",
        *(override for override in runs.TINY if not override.startswith("--config=")),
        "--config.model.hidden=( 16,)",  # again, and with a space
        "--config.num_steps=2",
        f"--workdir={tmp_path}",
        f"--out={tmp_path / 'lr0.5'}",
        "--only=full",  # for the programs, of which other tests have use
        "--seeds",
        "3",
    ]
    assert main(ablations, monkeypatch, *arguments) == 0
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "full-seed3/result.json").read_text())
    found = json.loads((tmp_path / "lr0.5.json").read_text())
    row = found["table"]["full"]["ten_crop_top1_error"]
    assert (row["mean"], row["n"]) == (result["ten_crop_top1_error"], 1)
    assert (tmp_path / "lr0.5.md").read_text() == table
    assert f"| full | 1 | {100 * result['ten_crop_top1_error']:.2f} |" in table
    assert "No run has ended of: no_lrn, " in table
    [run] = found["runs"]
    assert run["status"] == "finished" and run["step"] == 2
    assert len(run["sessions"]) == 1 and run["sessions"][0]["device"] == "a device"
    assert str(data_dir) not in (tmp_path / "lr0.5.json").read_text()
    assert (tmp_path / "lr0.5.png").stat().st_size > 0
    assert config_lib.load(tmp_path / "full-seed3/config.json").seed == 3

    def trained_again(*_, **__):
        raise AssertionError("a run that has ended is trained again")

    monkeypatch.setattr(run_process, "running", trained_again)
    assert main(ablations, monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == table


def test_the_training_error_is_the_mean_over_the_last_epoch(tmp_path):
    rng = np.random.default_rng(0)
    errors = rng.random(40)
    steps = np.arange(1, 41)
    lines = [
        {"epoch": 0.125 * step, "split": "train", "top1_error": error}
        for step, error in zip(steps, errors, strict=True)
    ]
    lines.insert(17, {"epoch": 2.0, "split": "val", "top1_error": 0.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"epoch": 7, "spl')  # as a killed run leaves it
    epochs, found = metrics.training_errors(metrics.lines(tmp_path))
    np.testing.assert_array_equal(epochs, 0.125 * steps)
    np.testing.assert_allclose(found, [errors[max(0, n - 8) : n].mean() for n in steps])
    assert metrics.training_errors([])[0].size == 0


def test_epochs_to_an_error_are_at_least_one():
    falling = [
        {"epoch": i / 10, "split": "train", "top1_error": max(0, 1 - i / 100)}
        for i in range(1, 101)
    ]
    assert figure1.epochs_to(falling, 0.25) == pytest.approx(7.5 + 0.5, abs=0.1)  # the window lags
    assert figure1.epochs_to(falling[:60], 0.25) is None
    low = [{"epoch": i / 10, "split": "train", "top1_error": 0.1} for i in range(1, 20)]
    assert figure1.epochs_to(low, 0.25) == 1.0


def test_the_nets_of_figure_1_differ_only_in_activation_and_rate():
    relu, tanh = (
        dict(config_lib.flatten(figure1.trial(a, 0.01, 0).config())) for a in figure1.ACTIVATIONS
    )
    assert {name for name in relu if relu[name] != tanh[name]} == {"model.stages"}
    assert relu["weight_decay"] == relu["model.dropout"] == relu["augment.colour_std"] == 0
    assert relu["augment.crop"] == relu["dataset.image_size"] and not relu["augment.flip"]
    assert len(relu["model.layers"]) + len(relu["model.hidden"]) + 1 == 4


def test_tanh_follows_the_convolution_and_the_hidden_layers():
    model = AlexNet(
        num_classes=3,
        layers=("conv1",),
        cross_layers=(),
        features=(4,),
        kernels=(1,),
        strides=(1,),
        padding=(0,),
        stages=(("tanh",),),
        hidden=(5,),
        dropout=0.0,
        init_std=0.5,
        biases=(0.1, 0.2, 0.3),
    )
    images = jax.random.normal(jax.random.key(1), (2, 1, 1, 3))
    logits, variables = jax.jit(
        lambda images: model.init_with_output(
            jax.random.key(0), images, mutable=["params", "intermediates"]
        )
    )(images)
    x = np.asarray(images, np.float64).reshape(2, 3)
    for name in ("conv1", "fc2", "fc3"):
        layer = variables["params"][name]
        kernel = np.asarray(layer["kernel"], np.float64)
        x = x @ kernel.reshape(-1, kernel.shape[-1]) + np.asarray(layer["bias"], np.float64)
        x = x if name == "fc3" else np.tanh(x)
    np.testing.assert_allclose(logits, x, rtol=1e-5)
    assert set(variables["intermediates"]) == {"tanh1", "tanh2", "dropout2"}


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (cifar10, ["--net=9pct"], "argument --net: invalid choice: '9pct'"),
        (cifar10, ["--net=80sec", "--seeds=0", "1"], "unexpected argument '1'; seeds are given as"),
        (cifar10, ["--net=80sec", "--seeds", "1", "1"], "--seeds names a seed twice"),
        (cifar10, ["--net=80sec", "--config.seed=1"], "seeds are given as --seeds"),
        (cifar10, ["--net=80sec", "--config.crop=1"], "did you mean 'augment.crop'?"),
        (cifar10, ["--net=80sec", "--config.batch_size=none"], "config.batch_size='none'"),
        (
            cifar10,
            ["--net=80sec", "--data=./nowhere"],
            "--data=./nowhere: the folder does not exist",
        ),
        (cifar10, ["--net=80sec", "--data=nowhere"], "unknown data set 'nowhere'"),
        (figure1, ["--data=nowhere"], "unknown data set 'nowhere'"),
        (ablations, [f"--data={runs.ROOT / 'docs'}"], "docs has no class folders"),
        (cifar10, ["--net=80sec", "--out=."], "--out=.: give the path of files"),
        (figure1, ["--config.learning_rate=1"], "the rates are given as --rates"),
        (figure1, ["--config.log_every_steps=9"], "the training error is that of every step"),
        (cifar10, ["--net=80sec", "--report"], "holds none of these runs, such as 80sec-seed0"),
        (figure1, ["--rates", "0"], "config.learning_rate=0.0"),
        (ablations, ["--config=configs/none.py"], "configs/none.py does not exist"),
        (
            ablations,
            ["--only=no_luck"],
            "--only=no_luck does not exist; of this recipe there are full,",
        ),
        (
            ablations,
            ["--only=no_lrn", f"--config={recipe('cifar10_80sec')}"],
            "--only=no_lrn does not apply: it has no lrn",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    module, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command_line, "as_interrupts", lambda: None)
    workdir = tmp_path / "runs"
    with pytest.raises(SystemExit, match="2"):
        command_line.main(lambda: main(module, monkeypatch, *arguments, f"--workdir={workdir}"))
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not workdir.exists()


def test_the_ablations_of_each_recipe_have_their_own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "alexnet"):
        with pytest.raises(InputError, match=f"^--workdir=runs/ablations/{name} holds none"):
            main(ablations, monkeypatch, f"--config={recipe(name)}", "--report")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=f"^--workdir={tmp_path}/home/there holds none"):
        main(ablations, monkeypatch, "--workdir=~/there", "--report")


def test_an_experiment_leaves_accelerators_to_its_runs():
    """The runs are separate processes, and they need the memory of a GPU."""
    code = "import jax, os; from experiments import command_line"
    code += "; command_line.main(lambda: print(jax.config.jax_platforms, dict(os.environ)) or 0)"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, cwd=runs.ROOT, env=environment, text=True)
    assert said.startswith("cpu {") and "JAX_PLATFORMS" not in said


def test_the_home_of_an_unknown_user_is_part_of_the_path():
    assert str(command_line.path("~nobody.of.this.name/x")) == "~nobody.of.this.name/x"
