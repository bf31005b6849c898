"""A run directory belongs to one run, and to one process at a time."""

import os

import pytest

from alexnet_jax import InputError
from alexnet_jax.train import train_and_evaluate
from alexnet_jax.workdir import locked


def test_a_second_job_is_refused_by_the_name_of_the_first(config, tmp_path):
    config.num_steps = 1
    before = f"process {os.getpid()} on "
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(before)
        with pytest.raises(InputError, match=f"{tmp_path} is being trained in by {before}.*since"):
            train_and_evaluate(config, tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["lock"]
    assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text("process 4194305 on a machine, since long ago\n")
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_lock_that_is_given_back_while_another_waits_for_it_is_not_shared(tmp_path, monkeypatch):
    """Who has opened a file that its holder then removes must not take that for the lock."""
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
