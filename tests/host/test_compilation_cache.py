"""Runs reuse compiled programs, which changes the time they take and nothing else."""

import collections
import os
import re
import warnings

import jax
import numpy as np
import pytest

from alexnet_jax.host import compilation_cache
from alexnet_jax.rundir import restoring
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


def _program(entry):
    return entry.name.rsplit("-", 2)[0]


def _assert_same_states(*workdirs):
    first, *others = (restoring.load(workdir, "latest")[1] for workdir in workdirs)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)


def test_a_run_reads_the_programs_of_another_and_replaces_damaged_ones(start, tmp_path):
    _wait(start("first"))
    first = _entries(tmp_path / "home")
    assert len({path.parent for path in first}) == 1
    names = collections.Counter(_program(path) for path in first)
    # If an entry is damaged, others of the same name are replaced as well.
    damaged = [path for path in sorted(first) if names[_program(path)] == 1][:3]
    for i, path in enumerate(damaged):
        path.write_bytes((path.read_bytes()[:1000], b"", b"not compressed")[i % 3])
    _wait(start("second"))
    second = _entries(tmp_path / "home")
    assert second.keys() == first.keys()
    assert len(damaged) == 3
    assert all(second[path][1] > 1000 for path in damaged)
    assert all(second[path] == first[path] for path in first.keys() - set(damaged))
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


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Return the user's folder, whose settings of JAX do not outlast the test."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache.folder()
    folder.mkdir(mode=0o700, parents=True)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("why", ["another user's", "others write to it", "a group writes to it"])
def test_a_folder_that_others_may_fill_is_not_used(own_folder, monkeypatch, capsys, given, why):
    """What lies there is executed."""
    if given:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(own_folder))
    jax.config.update("jax_compilation_cache_dir", str(own_folder) if given else None)
    if why == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        monkeypatch.setattr(compilation_cache, "_ROOT", -1)  # who may run the tests
    else:
        own_folder.chmod(0o777 if why.startswith("others") else 0o770)
    compilation_cache.keep()
    assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"warning: [^\n]*{own_folder}[^\n]* JAX_COMPILATION_CACHE_DIR[^\n]*\n", said
    )


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_users_own_folder_is_used(own_folder, capsys, mode):
    own_folder.chmod(mode)
    compilation_cache.keep()
    assert jax.config.jax_compilation_cache_dir == str(own_folder)
    assert capsys.readouterr().err == ""


def test_the_folder_is_bounded_and_keeps_what_was_used_last(own_folder, monkeypatch):
    monkeypatch.setattr(compilation_cache, "LARGEST", 250)
    for i, (used, written) in enumerate([(3, 3), (1, 1), (9, 0), (2, 2)]):
        entry = own_folder / f"jit_{i}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (used, written))
    (own_folder / "mine").write_bytes(bytes(1000))
    compilation_cache.keep()
    assert sorted(path.name for path in own_folder.iterdir()) == [
        "jit_0-cache",
        "jit_2-cache",
        "mine",
    ]
