"""Generated bad run directories give the right answer or one line with the cause.

They never give another exception, a hang, unbounded memory, or a wrong network. FUZZ=10 generates
ten times as many cases. How they ended is shown after the tests.
"""

import random
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_jax import InputError, predict, restore
from alexnet_jax import config as config_lib
from alexnet_jax.train import train_and_evaluate
from tests import fuzz_files, fuzz_images, outcomes, runs
from tests.generated import cases, one_line, refused


def _smallest(data_dir):
    """Return a config of one convolution and one hidden layer, which compiles in seconds."""
    config = runs.tiny_config(data_dir)
    runs.one_layer(config.model)
    config.dataset.image_size, config.augment.crop = 16, 12
    config.num_steps, config.checkpoint_every_steps = 4, 2
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a run of four steps, its config, and the states in its checkpoints."""
    root = tmp_path_factory.mktemp("finished")
    config = _smallest(root / "data")
    train_and_evaluate(config, root / "run")
    kept = sorted(int(path.name) for path in (root / "run" / "checkpoints").iterdir())
    return root / "run", config, {step: restore(root / "run", step)[1] for step in kept}


def _is(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _foreign(root, rng):
    """Put a foreign file beside the checkpoints, or move one of them."""
    checkpoints = root / "checkpoints"
    number = rng.choice(("3", "9", "007", "-1", "x", "1e3", "4.tmp", "99999999999999999999", "٣"))
    how = rng.choice(("file", "folder", "link", "copied", "lost"))
    match how:
        case "file":
            (checkpoints / number).write_text("x")
        case "folder":
            (checkpoints / number / "metrics").mkdir(parents=True)
        case "link":
            (checkpoints / number).symlink_to(number)
        case "copied":
            shutil.copytree(checkpoints / "4", checkpoints / f"{number}.copy")
        case "lost":
            shutil.rmtree(checkpoints / rng.choice(("2", "4")))
    return f"{how} {number}"


@pytest.mark.parametrize("use", ["restore", "train"])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics/metrics", None),
        ("metrics/metrics", '{"top1_error": "x"}'),
        ("_CHECKPOINT_METADATA", "[" * 100_000),
    ],
)
def test_damaged_metrics_and_metadata_are_refused_or_skipped(
    finished, tmp_path, use, file, content
):
    run, config, saved = finished
    shutil.copytree(run, tmp_path / "run")
    for damaged in (tmp_path / "run" / "checkpoints").glob(f"*/{file}"):
        damaged.unlink()
        damaged.mkdir() if content is None else damaged.write_text(content)
    try:
        if use == "train":
            train_and_evaluate(config, tmp_path / "run")
        variables = restore(tmp_path / "run")[1]
    except InputError as error:
        refused("run directories, restored", error)
    else:
        assert any(_is(variables, state) for state in saved.values())


@cases(12)
@given(seed=st.integers(0, 2**32), step=st.sampled_from(("best", "latest", 2, 4, 3)))
def test_a_damaged_run_restores_a_saved_state_or_gives_one_line(
    tmp_path_factory, finished, seed, step
):
    run, config, saved = finished
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    rng = random.Random(seed)
    how = (_foreign if rng.random() < 0.3 else fuzz_files.damage)(copy, rng)
    try:
        _, variables, found = restore(copy, step)
    except InputError as error:
        refused("run directories, restored", error)
        return
    assert any(_is(variables, state) for state in saved.values()), how
    if isinstance(step, int):
        assert _is(variables, saved[step]), how
    same = found.to_dict() == config.to_dict()
    outcomes.note("run directories, restored", "as saved" if same else "as saved, config changed")


@cases(4)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_run_resumes_to_the_same_state_or_gives_one_line(
    tmp_path_factory, finished, seed
):
    run, config, saved = finished
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    rng = random.Random(seed)
    how = (_foreign if rng.random() < 0.3 else fuzz_files.damage)(copy, rng)
    try:
        train_and_evaluate(config, copy)
    except InputError as error:
        refused("run directories, continued", error)
        return
    assert _is(restore(copy, "latest")[1], saved[4]), how
    outcomes.note("run directories, continued", "ended in the same state")


@cases(4)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_run_predicts_the_same_or_gives_one_line(tmp_path_factory, finished, seed):
    run, _, _ = finished
    image = np.full((8, 8, 3), 90, np.uint8)
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    how = fuzz_files.damage(copy / "checkpoints", random.Random(seed))
    try:
        answer = predict(copy, [image])
    except InputError as error:
        refused("run directories, predicting", error)
        return
    assert answer == predict(run, [image]), how
    outcomes.note("run directories, predicting", "as before")


def test_the_command_names_files_that_it_cannot_use(finished, tmp_path):
    run = finished[0]
    odd = tmp_path / "two\nlines \udcff.png"
    odd.write_bytes(fuzz_images.WHOLE["a.png"])
    done = runs.run("--mode=predict", f"--workdir={run}", str(odd))
    assert done.returncode == 0, done.stderr
    assert "\\udcff" in done.stdout
    bomb = tmp_path / "bomb\n.png"
    bomb.write_bytes(fuzz_images.expensive()["sides.png"])
    done = runs.run("--mode=predict", f"--workdir={run}", f"--images={odd}", str(bomb))
    assert "exceeds limit" in one_line(done.returncode, done.stdout, done.stderr, "run.py")
    workdir = f"--workdir={tmp_path}/run"
    done = runs.run(*runs.TINY, workdir, "--config.batch_size=2147483647")
    assert "MB are free" in one_line(done.returncode, done.stdout, done.stderr, "run.py")
    assert sorted(tmp_path.iterdir()) == sorted([odd, bomb])
