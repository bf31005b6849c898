"""Checkpoints as files: any path, other users, other processes, and what a kill leaves."""

import contextlib
import gc
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import threading

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import ocdbt_utils

from alexnet_jax import InputError
from alexnet_jax import config as config_lib
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.rundir import Checkpoints, RunRecord, checkpoint, integrity, quarantine, restoring
from alexnet_jax.rundir import resume as workdir_lib
from alexnet_jax.rundir.checkpoint import DamagedCheckpoint
from alexnet_jax.state import abstract_state
from tests import runs, untrained

CONFIG = runs.tiny_config("none")


def _state(step):
    """Return a state of `step` whose arrays all hold that number."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, step, leaf.dtype), abstract_state(CONFIG))


def _save(checkpoints, step, error=None):
    validation = error and {"top1_error": error}
    checkpoints.save(step, _state(step), RunRecord(CONFIG.to_dict(), validation=validation))


def _assert_holds(workdir, step, which="latest"):
    _, state, _ = restoring.load(workdir, which)
    jax.tree.map(np.testing.assert_array_equal, state, _state(step))


def _kept(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def _descriptors():
    return list(pathlib.Path("/proc/self/fd").iterdir())


@pytest.fixture
def saved(tmp_path):
    """Return a run directory with checkpoints of the steps 1, the best, 2 and 3."""
    with Checkpoints(tmp_path) as checkpoints:
        for step, error in ((1, 0.1), (2, 0.4), (3, 0.3)):
            _save(checkpoints, step, error)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "proj [v2]/one",
        "no utf-8 \udcff",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("run[lr=0.1]", "a?b", "a*b", "back\\slash")
        ),
    ],
)
def test_a_run_may_have_any_path(tmp_path, name):
    workdir = tmp_path / name
    workdir.mkdir(parents=True)
    with Checkpoints(workdir) as checkpoints:
        for step in (1, 2, 3):
            _save(checkpoints, step)
    assert _kept(workdir) == ["2", "3"]
    _assert_holds(workdir, 3)
    before = len(_descriptors())
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore_latest(abstract_state(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, state, _state(3))
    assert len(_descriptors()) <= before


def test_a_save_that_cannot_be_read_back_is_not_a_checkpoint(tmp_path, monkeypatch):
    """Orbax left such a save where it took the name of a directory for a pattern."""

    async def merges_nothing(*_, **__):
        pass

    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            _save(checkpoints, step)
        checkpoints.wait()
        monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merges_nothing)
        _save(checkpoints, 3)
        with pytest.raises(InputError, match="not there when step 3 is read back"):
            checkpoints.wait()
    _assert_holds(tmp_path, 2)
    with Checkpoints(tmp_path):  # which removes what is left of it
        assert _kept(tmp_path) == ["1", "2"]


@contextlib.contextmanager
def _without_rights(path):
    """Take all permissions for `path` from this process; root becomes nobody meanwhile."""
    root = os.geteuid() == 0
    path.chmod(0o000)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o755)


@pytest.fixture
def public():
    """Return a run directory that every user may read and write; its checkpoint is of step 1."""
    with tempfile.TemporaryDirectory() as name:
        workdir = pathlib.Path(name)
        with Checkpoints(workdir) as checkpoints:
            _save(checkpoints, 1)
        for path in (workdir, *workdir.rglob("*")):
            path.chmod(0o777)
        _assert_holds(workdir, 1)  # all that is imported for that has been
        yield workdir


REPEATED = ("1", "1/run", "1/state/d", "1/state/manifest.ocdbt")


@pytest.mark.parametrize(
    "closed",
    ["", "1/state", "1/run/metadata", *(pytest.param(p, marks=pytest.mark.slow) for p in REPEATED)],
)
def test_a_checkpoint_without_permission_to_read_it_is_not_damaged(public, closed):
    path = public / "checkpoints" / closed
    with _without_rights(path):
        with pytest.raises(InputError, match="cannot be read now.*denied.*right") as caught:
            restoring.load(public)
        assert not isinstance(caught.value, DamagedCheckpoint)
        refused = pytest.raises(InputError, match="cannot be read now.*denied.*right")
        with refused as caught, Checkpoints(public) as checkpoints:
            checkpoints.restore_latest(abstract_state(CONFIG))
        assert not isinstance(caught.value, DamagedCheckpoint)
        assert "remove" not in str(caught.value)
    assert [path.name for path in public.iterdir()] == ["checkpoints"]
    _assert_holds(public, 1)


def test_a_run_directory_without_permission_to_list_it_is_still_a_run(public):
    with _without_rights(public), pytest.raises(InputError, match="cannot be read now.*denied"):
        restoring.load(public)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_too_few_file_handles_are_named(saved, monkeypatch):
    # An event loop that got no handle complains when it is collected, and pytest's record of that
    # complaint needs a handle too.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Checkpoints(saved) as checkpoints:
        refused, free = 0, os.dup(0)
        os.close(free)
        for more in range(0, 12, 2):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
            try:
                checkpoints.restore_latest(abstract_state(CONFIG))
            except InputError as error:
                assert not isinstance(error, DamagedCheckpoint), error
                assert "Too many open files" in str(error)
                assert "ulimit -n" in str(error)
                refused += 1
            finally:
                gc.collect()
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused
    assert _kept(saved) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(24, "Too many open files"), r"raise the limit of open files \(ulimit -n\)"),
        (ValueError("RESOURCE_EXHAUSTED: [OS error 24: EMFILE Too many open files]"), "ulimit -n"),
        (ValueError("PERMISSION_DENIED: [OS error 13: EACCES Permission denied]"), "right to it"),
        (OSError(28, "No space left on device"), "make room there"),
        (OSError(5, "Input/output error"), "see to that disk"),
    ],
)  # fmt: skip
def test_a_save_that_fails_names_the_remedy(tmp_path, monkeypatch, error, remedy):
    def fails(*_, **__):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "save", fails)
        with pytest.raises(InputError, match=f"cannot write .*: .*{remedy}.*continues"):
            _save(checkpoints, 1)


def test_a_run_is_read_while_it_saves_and_deletes(tmp_path):
    """A reader skips a checkpoint that the run deletes after the reader listed it."""
    ended = threading.Event()

    def saves():
        try:
            for step in range(2, 20):
                _save(writer, step, 1 / step)  # each is the best, so that two are kept
        finally:
            ended.set()

    with Checkpoints(tmp_path) as writer:
        _save(writer, 1, 1.0)
        writer.wait()
        thread = threading.Thread(target=saves)
        thread.start()
        read = []
        try:
            while not ended.is_set():
                for which in ("best", "latest"):
                    _, state, _ = restoring.load(tmp_path, which)
                    read.append(int(state.step))
                    jax.tree.map(np.testing.assert_array_equal, state, _state(read[-1]))
        finally:
            thread.join()
    assert sorted(read) == read
    assert len(set(read)) > 5
    assert _kept(tmp_path) == ["18", "19"]


def test_a_checkpoint_deleted_between_listing_and_reading_is_skipped(saved, monkeypatch):
    whole, read_run = saved.parent / "whole", integrity.read_run
    shutil.copytree(saved, whole)

    def deleted_before(path):
        if path.name == "3":
            shutil.rmtree(path / "state", ignore_errors=True)  # while its JSON is being read
            found = read_run(path)
            shutil.rmtree(path)
            return found
        return read_run(path)

    monkeypatch.setattr(integrity, "read_run", deleted_before)
    _assert_holds(saved, 2)
    with pytest.raises(InputError, match="no checkpoint of step 3; it holds 1, 2"):
        restoring.load(whole, 3)


def test_a_resume_deletes_what_a_kill_left(saved, capsys):
    """The best and the two latest stay; one that is half deleted is not restored."""
    checkpoints = saved / "checkpoints"
    for name in ("4", "5", "0", "5.removed"):
        shutil.copytree(checkpoints / "3", checkpoints / name)
    with Checkpoints(saved) as writer:
        _save(writer, 6, 0.5)
        writer.wait()
        shutil.copytree(checkpoints / "6", checkpoints / "4")
        shutil.copytree(checkpoints / "6", checkpoints / "2")
        shutil.rmtree(checkpoints / "2" / "run")
    assert _kept(saved) == ["1", "2", "4", "5", "6"]
    with Checkpoints(saved) as resumed:
        assert int(resumed.restore_latest(abstract_state(CONFIG))[0].step) == 6
    assert _kept(saved) == ["1", "5", "6"]
    assert "checkpoints/2 is damaged and now in" in capsys.readouterr().err
    assert [path.name for path in (saved / quarantine.DAMAGED).iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, "2 6"), (2, "2 5 6"), (3, "2 4 5 6"), (9, "1 2 3 4 5 6")]
)
def test_the_best_and_as_many_of_the_latest_as_asked_for_are_kept(
    tmp_path, monkeypatch, keep, kept
):
    """While one is written, the latest complete one stays, so that a kill loses nothing else."""
    during = []

    def accepted(self, original=Checkpoints._accept):  # after it the new one gets its name
        original(self)
        during.append([name for name in _kept(tmp_path) if name.isdigit()])

    monkeypatch.setattr(Checkpoints, "_accept", accepted)
    errors = (0.5, 0.1, 0.4, 0.3, 0.2, 0.6)
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step, error in enumerate(errors, 1):
            _save(checkpoints, step, error)
            assert checkpoints.latest() == step  # complete
    assert _kept(tmp_path) == kept.split()
    assert all(str(step) in names for step, names in enumerate(during[1:], 1))
    if keep == 1:
        assert [len(names) for names in during] == [0, 1, 1, 2, 2, 2]  # the disk needs no more
    with Checkpoints(tmp_path, keep=1) as resumed:  # a resumed run may keep fewer
        resumed.restore_latest(abstract_state(CONFIG))
    assert _kept(tmp_path) == ["2", "6"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "changed"])
def test_a_damaged_or_changed_config_file_does_not_stop_a_run(tmp_path, content):
    workdir, path = tmp_path / "run", tmp_path / "run" / "config.json"
    untrained.save_run(workdir, CONFIG)
    changed = path.read_text().replace('"seed": 0', '"seed": 7')
    path.write_text(changed if content == "changed" else content)
    workdir_lib.check(workdir, CONFIG)
    if content != "changed":
        with pytest.raises(InputError, match=str(path)):
            config_lib.load(path)
        return
    other = runs.tiny_config("none")
    other.seed = 7  # as the file has it, not the checkpoint
    other.momentum = 0.5
    with pytest.raises(InputError, match=r"holds a run with seed=0 \(now 7\), momentum"):
        workdir_lib.check(workdir, other)


def test_evaluating_the_run_of_another_user_creates_no_data(tmp_path):
    config = runs.tiny_config(tmp_path / "elsewhere")
    untrained.save_run(tmp_path / "run", config)
    with pytest.raises(InputError, match="'digits', which is not prepared in .*; give --config"):
        evaluate_checkpoint(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
