"""Runs reuse compiled programs, which changes the time they take and nothing else."""

import re

import jax
import numpy as np
import pytest

from alexnet_jax.host import compilation_cache
from alexnet_jax.rundir import checkpoint
from tests import runs


@pytest.fixture
def start(tmp_path, data_dir):
    """Return a function that starts a run, given its directory's name and where its cache is."""

    def start(name, cache=None):
        environment = {"XDG_CACHE_HOME": str(tmp_path / "home"), "JAX_COMPILATION_CACHE_DIR": cache}
        return runs.start(
            *runs.TINY,
            f"--workdir={tmp_path / name}",
            f"--config.dataset.data_dir={data_dir}",
            "--config.num_steps=3",
            devices=2,
            environment=environment | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": None},
        )

    return start


def _wait(*processes):
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        lines = [r"1,438 training .*", r"compiled in .*", r"(step 1/3, .*\n)?step 3, .*"]
        assert re.fullmatch("\n".join([*lines, ""]), err), err


def _entries(folder):
    found = folder.rglob("*-cache")
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def _assert_same_states(*workdirs):
    first, *others = (checkpoint.load(workdir, "latest")[1] for workdir in workdirs)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)


def test_a_run_reads_the_programs_of_another_and_replaces_damaged_ones(start, tmp_path):
    _wait(start("first"))
    first = _entries(tmp_path / "home")
    assert len({path.parent for path in first}) == 1
    damaged = sorted(first)[1::2]
    for i, path in enumerate(damaged):
        path.write_bytes((path.read_bytes()[:1000], b"", b"not compressed")[i % 3])
    _wait(start("second"))
    second = _entries(tmp_path / "home")
    assert second.keys() == first.keys()
    assert len(damaged) > 3
    assert all(second[path][1] > 1000 for path in damaged)
    assert all(second[path] == first[path] for path in sorted(first)[::2])
    _assert_same_states(tmp_path / "first", tmp_path / "second")


@pytest.mark.slow
def test_two_runs_that_fill_the_cache_at_once_train_as_one_without_a_cache(start, tmp_path):
    _wait(start("without", cache=""))
    assert not (tmp_path / "home").exists()
    _wait(start("one"), start("other"))
    assert _entries(tmp_path / "home")
    _assert_same_states(*(tmp_path / name for name in ("without", "one", "other")))


def test_a_run_does_without_a_folder_that_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = dict(jax.config.values)
    compilation_cache.keep()
    assert dict(jax.config.values) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_each_user_and_kind_of_processor_has_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = compilation_cache.folder()
    assert mine.parent == tmp_path / "alexnet_jax"
    assert compilation_cache.folder() == mine
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation_cache.folder() == tmp_path / ".cache" / "alexnet_jax" / mine.name
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    assert compilation_cache.folder().name != mine.name
