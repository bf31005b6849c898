"""A damaged checkpoint is noticed, named, and moved; the run resumes from the one before it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import InputError
from alexnet_jax.rundir import Checkpoints, RunRecord, checkpoint, integrity, quarantine, restoring
from alexnet_jax.rundir.checkpoint import DamagedCheckpoint
from alexnet_jax.state import abstract_state
from alexnet_jax.train import train_and_evaluate
from tests import runs


@pytest.fixture
def config(config):
    """Return the config of the finished run."""
    config.checkpoint_every_steps, config.num_steps = 2, 4
    return config


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
    "metrics that are not JSON": lambda step: (step / "metrics" / "metrics").write_text("{"),
    "a record that is not JSON": lambda step: _largest_file(step / "run").write_text("["),
    "nothing at all": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_restored(
    config, finished_run, run_copy, capsys, damage
):
    DAMAGES[damage](run_copy / "checkpoints" / "4")
    with Checkpoints(run_copy) as checkpoints:
        state, _ = checkpoints.restore_latest(abstract_state(config))
    step = 4 if damage == "no metrics" else 2  # a checkpoint is whole without its metrics
    assert int(state.step) == step
    jax.tree.map(np.testing.assert_array_equal, state, restoring.load(finished_run, step)[1])
    warning = f"warning: {run_copy / 'checkpoints' / '4'} is damaged and now in"
    assert (warning in capsys.readouterr().err) == (step == 2)


def test_training_resumes_from_the_checkpoint_before_a_damaged_one(config, finished_run, run_copy):
    _flip_a_bit(run_copy / "checkpoints" / "4")
    train_and_evaluate(config, run_copy)
    straight, resumed = (restoring.load(p, "latest")[1] for p in (finished_run, run_copy))
    assert int(resumed.step) == 4
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert [line["step"] for line in runs.metrics(run_copy)] == [1, 2, 3, 4]


def test_a_run_is_not_restarted_if_all_its_checkpoints_are_damaged(config, run_copy):
    for step in (run_copy / "checkpoints").iterdir():
        _truncate(step)
    before = (run_copy / "metrics.jsonl").read_text()
    for _ in range(2):  # a second attempt is refused as well
        with pytest.raises(InputError, match="every checkpoint is damaged"):
            train_and_evaluate(config, run_copy)
        assert (run_copy / "metrics.jsonl").read_text() == before


def test_nor_is_one_that_has_set_a_diverged_checkpoint_aside_before(config, run_copy):
    (run_copy / "diverged_checkpoints").mkdir()
    for step in (run_copy / "checkpoints").iterdir():
        _truncate(step)
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        train_and_evaluate(config, run_copy)


def test_other_names_beside_the_checkpoints_are_left_alone(run_copy):
    others = [run_copy / "checkpoints" / name for name in ("x.replacement", "0x1.replacement")]
    for other in others:
        other.mkdir()
    with Checkpoints(run_copy) as checkpoints:
        assert checkpoints.latest()
    assert all(other.is_dir() for other in others)


def test_a_checkpoint_of_another_format_is_refused_and_stays_where_it_is(config, run_copy):
    record = _largest_file(run_copy / "checkpoints" / "4" / "run")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 1}))
    with pytest.raises(InputError, match="checkpoints/4 has format 1, this version reads 3"):
        train_and_evaluate(config, run_copy)
    assert record.exists()


def test_a_flipped_byte_is_never_restored(config, run_copy):
    """Whichever byte of the state's files changes, the state is as saved or it is refused."""
    abstract = abstract_state(config)
    with Checkpoints(run_copy, read_only=True) as checkpoints:
        saved, _ = checkpoints.restore(4, abstract)
        files = sorted(
            p for p in (run_copy / "checkpoints" / "4" / "state").rglob("*") if p.is_file()
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
                found, _ = checkpoints.restore(4, abstract)
                jax.tree.map(np.testing.assert_array_equal, saved, found)
            except DamagedCheckpoint:
                refused += 1
            file.write_bytes(content)
        assert refused > 10
        checkpoints.restore(4, abstract)


def test_a_state_that_changes_while_it_is_saved_is_refused(config, tmp_path, monkeypatch):
    """The checksum is that of the arrays, whatever writes them."""
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
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(config, run_copy, monkeypatch, error):
    abstract = abstract_state(config)
    kept = sorted(p.name for p in (run_copy / "checkpoints").iterdir())

    def fails(*_, **__):
        raise error

    with Checkpoints(run_copy) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.ocp.Checkpointer, "restore", fails)
            with pytest.raises(InputError, match="checkpoints/4 cannot be read now") as caught:
                checkpoints.restore_latest(abstract)
        assert not isinstance(caught.value, DamagedCheckpoint)
        assert sorted(p.name for p in (run_copy / "checkpoints").iterdir()) == kept
        assert not (run_copy / quarantine.DAMAGED).exists()
        assert int(checkpoints.restore_latest(abstract)[0].step) == 4


def test_the_next_run_removes_what_a_kill_leaves_of_a_save_and_a_reader_does_not(run_copy):
    directory = run_copy / "checkpoints"
    shutil.copytree(directory / "4", directory / "5.orbax-checkpoint-tmp")
    restoring.load(run_copy)
    assert list(directory.glob("*tmp*"))
    with Checkpoints(run_copy):
        assert not list(directory.glob("*tmp*"))


def test_a_run_may_be_named_by_a_path_with_two_dots(config, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_state(config))
    record = RunRecord(config.to_dict(), list("0123456789"), "none", seconds=1.0)
    with Checkpoints(pathlib.Path("../digits")) as checkpoints:
        checkpoints.save(1, state, record)
    assert (tmp_path / "digits" / "checkpoints" / "1").is_dir()
