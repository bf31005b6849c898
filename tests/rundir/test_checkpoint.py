"""Checkpoints that are damaged: noticed, named, and the one before is gone on from."""

import json
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import InputError
from alexnet_jax.rundir import Checkpoints, RunRecord, checkpoint, integrity, quarantine
from alexnet_jax.rundir.checkpoint import DamagedCheckpoint
from alexnet_jax.state import abstract_state
from alexnet_jax.train import train_and_evaluate
from tests import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """Return directories of a run of six steps and of one of eight, and their config."""
    config = runs.tiny_config(data_dir)
    config.checkpoint_every_steps = 2
    path = tmp_path_factory.mktemp("runs")
    for config.num_steps in (6, 8):
        train_and_evaluate(config, path / str(config.num_steps))
    return path, config


def _largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(step):
    path = _largest_file(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(step):
    path = _largest_file(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "half a file": _truncate,
    "a flipped bit": _flip_a_bit,
    "no state": lambda step: shutil.rmtree(step / "state"),
    "an empty state": lambda step: [p.write_text("") for p in (step / "state").rglob("_*")],
    "no metrics": lambda step: shutil.rmtree(step / "metrics"),
    "metrics that are no JSON": lambda step: (step / "metrics" / "metrics").write_text("{"),
    "a run that is no JSON": lambda step: _largest_file(step / "run").write_text("["),
    "nothing at all": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    trained, tmp_path, capsys, damage
):
    path, config = trained
    shutil.copytree(path / "6", tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / "checkpoints" / "6")
    train_and_evaluate(config, tmp_path / "run")
    warning = f"warning: {tmp_path / 'run' / 'checkpoints' / '6'} is damaged and now in"
    assert warning in capsys.readouterr().err or damage == "no metrics"  # can be done without
    straight, after = (checkpoint.load(p, "latest")[1] for p in (path / "8", tmp_path / "run"))
    assert int(after.step) == 8
    jax.tree.map(np.testing.assert_array_equal, straight, after)
    assert [line["step"] for line in runs.metrics(tmp_path / "run")] == list(range(1, 9))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(trained, tmp_path):
    path, config = trained
    shutil.copytree(path / "6", tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        _truncate(step)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    with pytest.raises(InputError, match="every checkpoint is damaged"):  # and not the next time
        train_and_evaluate(config, tmp_path / "run")


def test_a_checkpoint_of_another_format_is_refused_and_left_where_it_is(trained, tmp_path):
    path, config = trained
    shutil.copytree(path / "6", tmp_path / "run")
    run = _largest_file(tmp_path / "run" / "checkpoints" / "6" / "run")
    run.write_text(json.dumps(json.loads(run.read_text()) | {"format": 1}))
    with pytest.raises(InputError, match="checkpoints/6 has format 1, this version reads 3"):
        train_and_evaluate(config, tmp_path / "run")
    assert run.exists()


def test_no_flipped_byte_is_taken_for_the_state(trained, tmp_path):
    """Wherever a byte of the state's files changes: the state is as saved, or is refused."""
    path, config = trained
    shutil.copytree(path / "6" / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    abstract = abstract_state(config)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        saved, _ = checkpoints.restore(6, abstract)
        files = sorted(
            p for p in (tmp_path / "checkpoints" / "6" / "state").rglob("*") if p.is_file()
        )
        rng, refused = np.random.default_rng(0), 0
        for number in range(40):
            file = files[number % len(files)]
            content = file.read_bytes()
            if not content:
                continue
            changed = bytearray(content)
            changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            try:
                found, _ = checkpoints.restore(6, abstract)
                jax.tree.map(np.testing.assert_array_equal, saved, found)
            except DamagedCheckpoint:
                refused += 1
            file.write_bytes(content)
        assert refused > 10
        checkpoints.restore(6, abstract)


def test_a_state_that_changed_on_the_way_is_refused(trained, tmp_path, monkeypatch):
    """The checksum is of the arrays, whatever wrote them."""
    _, config = trained
    config = runs.tiny_config(config.dataset.data_dir)
    abstract = abstract_state(config)
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract)
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            array = {"shape": [], "dtype": "int32", "crc32": 0}
            described = integrity.described(state) | {"step": array}
            patch.setattr(integrity, "described", lambda _: described)
            checkpoints.save(1, state, RunRecord())
        checkpoints.best()  # waits for the save
        with pytest.raises(DamagedCheckpoint, match="the checksum of step is wrong"):
            checkpoints.restore(1, abstract)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_just_now_is_not_taken_for_damage(
    trained, tmp_path, monkeypatch, error
):
    path, config = trained
    shutil.copytree(path / "6", tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.Checkpointer, "restore", fails)
        with pytest.raises(InputError, match="checkpoints/6 cannot be read now") as caught:
            train_and_evaluate(config, tmp_path / "run")
        assert not isinstance(caught.value, DamagedCheckpoint)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == kept
    assert not (tmp_path / "run" / quarantine.DAMAGED).exists()
    assert train_and_evaluate(config, tmp_path / "run")["step"] == 8


def test_what_a_kill_has_left_of_a_save_is_removed_by_the_next_run_and_by_no_reader(
    trained, tmp_path
):
    path, config = trained
    shutil.copytree(path / "6", tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints"
    shutil.copytree(directory / "6", directory / "7.orbax-checkpoint-tmp")
    checkpoint.load(tmp_path / "run")
    assert list(directory.glob("*tmp*"))
    train_and_evaluate(config, tmp_path / "run")
    assert sorted(p.name for p in directory.iterdir() if "tmp" in p.name) == []
