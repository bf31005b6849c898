"""The command line of a user: exit codes, one-line errors, evaluation and prediction."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests import runs
from tests.fuzz_configs import command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch_size=7"], "batch_size=7 cannot be divided over 2 devices; take 6 or 8"),
        (["--mode=fly"], "train|evaluate|predict|summary|prepare"),
        (["stray"], "'stray'"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = runs.run(*runs.TINY, f"--workdir={tmp_path / 'run'}", *arguments, devices=2)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.learning_rat=1"], "no field 'learning_rat'; did you mean 'learning_rate'"),
        (["--config.seed=x"], "config.seed='x': expected an integer from 0 to 2147483647"),
        (["--config.model.dropout=2"], "config.model.dropout=2.0: expected"),
        (["--config.dataset.name=cifarr10"], "cifar10"),
        (["--config.foo.bar=1"], "no field 'foo.bar'"),
        (["--config.model.cross_layers=([1],)"], "config.model.cross_layers="),
        (["--config=configs/alexnt.py"], "did you mean 'configs/alexnet.py'"),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config={tmp}/bad.py"], "ZeroDivisionError"),
        (["--workdir=gs://bucket/run"], "gs://bucket/run"),
        (["--mode=predict"], "--images"),
        (["--prepare_shard=0/2"], "--prepare_shard=0/2 goes with --mode=prepare"),
        (["--mode=evaluate"], "not a run directory"),
    ],
)
def test_every_kind_of_bad_input_gives_one_line(arguments, message, tmp_path):
    """In this process, with the exit codes of the processes above."""
    (tmp_path / "bad.py").write_text("def get_config():\n    return 1 / 0\n")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    code, out, err = command(*runs.TINY, f"--workdir={tmp_path / 'run'}", *arguments)
    assert code == 2, err
    assert message in err
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_outside_the_repository_recipes_are_offered_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for recipe in ("alexnt", "configs/alexnt.py", "configs/alexnet.py"):
        code, _, err = command(f"--config={recipe}", "--mode=summary")
        assert code == 2
        assert err == f"error: --config={recipe} does not exist; did you mean 'alexnet'?\n"


@pytest.mark.parametrize("recipe", [["--config=quickstart"], ["--config", "quickstart"]])
def test_fields_may_stand_before_the_recipe(recipe):
    code, out, err = command("--config.model.hidden=(10,20)", "--mode=summary", *recipe)
    assert code == 0, err
    assert re.search(r"^fc7 .* 20 ", out, re.MULTILINE), out


def test_a_workdir_that_is_a_file_is_refused(tmp_path, data_dir):
    (tmp_path / "run").write_text("mine")
    code, _, err = command(
        *runs.TINY, f"--workdir={tmp_path / 'run'}", f"--config.dataset.data_dir={data_dir}"
    )
    assert code == 2
    assert re.fullmatch(rf"error: --workdir={tmp_path}/run cannot be made [^\n]+\n", err)
    assert (tmp_path / "run").read_text() == "mine"


def test_modes_evaluate_and_predict_use_the_run(tmp_path, finished_run):
    workdir = finished_run
    result = json.loads((workdir / "result.json").read_text())
    done = runs.run("--mode=evaluate", f"--workdir={workdir}", devices=2)
    assert done.returncode == 0, done.stderr
    assert f"validation top-1 error {result['top1_error']:.2%}" in done.stdout

    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path in paths:
        Image.fromarray(np.full((30, 20, 3), 99, np.uint8)).save(path)
    done = runs.run("--mode=predict", f"--workdir={workdir}", f"--images={paths[0]}", str(paths[1]))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[0], lines[6]] == [str(p) for p in paths]
    assert all(re.fullmatch(r" +\d+\.\d\d%  \d", line) for line in lines[1:6] + lines[7:])

    done = runs.run("--mode=predict", f"--workdir={workdir}", f"--images={tmp_path / 'no.png'}")
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+no.png[^\n]+\n", done.stderr)


def test_a_failed_save_is_named_exits_with_2_and_can_be_resumed(tmp_path, data_dir):
    command = [
        *runs.TINY,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=3",
        "--config.checkpoint_every_steps=1",
    ]
    # Room for config, metrics and TensorBoard's 4 kB, not for a checkpoint's 48 kB of arrays.
    done = runs.run(*command, largest_file=16384)
    assert done.returncode == 2, (
        done.stderr
    )  # orbax may say more before our line, which is the last
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"error: cannot write {tmp_path}/checkpoints \(File too .+\): raise the limit of the size"
        r" of files \(ulimit -f\); the same command continues",
        last,
    )
    done = runs.run(*command)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2, 3]


def test_mode_prepare_prints_where_the_data_set_is(tmp_path):
    done = runs.run(*runs.TINY, "--mode=prepare", f"--config.dataset.data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("prepared data set: ")
