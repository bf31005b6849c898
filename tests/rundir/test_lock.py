"""A run directory belongs to one run, and to one process at a time."""

import dataclasses
import os
import shutil

import pytest

from alexnet_jax import InputError, data
from alexnet_jax.prepare import prepare
from alexnet_jax.rundir import checkpoint, locked, resume
from alexnet_jax.train import train_and_evaluate
from tests.prepared import make_folder


def test_a_second_job_is_refused_and_told_of_the_first(config, tmp_path):
    config.num_steps = 1
    before = f"process {os.getpid()} on "
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(before)
        with pytest.raises(InputError, match=f"{tmp_path} is being trained in by {before}.*since"):
            train_and_evaluate(config, tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["lock"]
    assert not (tmp_path / "lock").exists()


def test_a_run_takes_the_lock_of_a_dead_process(tmp_path):
    (tmp_path / "lock").write_text("process 4194305 on a machine, since long ago\n")
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_lock_released_while_another_process_waits_for_it_is_not_shared(tmp_path, monkeypatch):
    """A process that opens the lock just before its holder removes it does not hold it."""
    import fcntl

    flock, calls = fcntl.flock, []

    def removed_meanwhile(file, kind):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(kind)
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with locked(tmp_path):
        assert len(calls) == 2
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(InputError, match="being trained in"), locked(tmp_path):
            pass


@pytest.fixture
def of_folder(config, tmp_path):
    """Return the tiny config on a folder of uncompressed images of equal size."""
    folder = make_folder(tmp_path / "pets", size=72, extension=".ppm")
    config.dataset.name, config.dataset.path = "folder", str(folder)
    config.dataset.data_dir, config.model.num_classes = str(tmp_path / "data"), 2
    return config


def _begin(config, directory, **saved):
    """Begin or resume the run in `directory`, save its first checkpoint, and return its record."""
    dataset = data.open_dataset(prepare(config.dataset))
    with checkpoint.Checkpoints(directory) as checkpoints:
        state, record = resume.begin(config, directory, dataset, checkpoints)
        if checkpoints.latest() is None:
            checkpoints.save(0, state, dataclasses.replace(record, **saved))
    return record


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_is_not_resumed_on_a_set_rebuilt_from_other_images_of_the_same_size(
    of_folder, tmp_path, split
):
    directory = tmp_path / "run"
    directory.mkdir()
    first = _begin(of_folder, directory)
    shutil.rmtree(tmp_path / "data")
    assert _begin(of_folder, directory).data == first.data  # the same images
    shutil.rmtree(tmp_path / "data")
    folder = tmp_path / "pets" / split / "cat"
    shutil.copy(folder / "1.ppm", folder / "0.ppm")
    with pytest.raises(InputError, match=f"{directory} was trained on other images"):
        _begin(of_folder, directory)


def test_a_run_that_saved_only_the_hash_of_the_directory_is_resumed_and_saves_both(
    of_folder, tmp_path
):
    directory = tmp_path / "run"
    directory.mkdir()
    short = prepare(of_folder.dataset).name.rpartition("-")[2]
    _begin(of_folder, directory, data=short)
    resumed = _begin(of_folder, directory).data
    assert resumed.startswith(f"{short}-")
    shutil.copy(tmp_path / "pets/val/cat/0.ppm", tmp_path / "pets/val/cat/2.ppm")
    with pytest.raises(InputError, match="was trained on other images"):
        _begin(of_folder, directory)


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_a_lock_that_is_no_file_is_refused_and_what_it_leads_to_stays(tmp_path, kind):
    (tmp_path / "mine").write_text("mine")
    if kind == "pipe":
        os.mkfifo(tmp_path / "lock")
    else:
        (tmp_path / "lock").symlink_to("mine" if kind == "link" else "nothing")
    with (
        pytest.raises(InputError, match=f"{tmp_path}/lock is not a regular file: remove it"),
        locked(tmp_path),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "mine"]
    assert (tmp_path / "mine").read_text() == "mine"
