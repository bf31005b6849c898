"""Threads that cannot be started are refused before a native library waits for them."""

import re
import threading

import pytest

from alexnet_jax import InputError, data
from alexnet_jax.host import threads
from alexnet_jax.prepare import prepare
from tests import runs
from tests.fuzz_configs import command


@pytest.fixture
def at_most(monkeypatch):
    """Let this process start no more than a number of threads."""
    original = threading.Thread.start

    def limit(number):
        left = iter(range(number))

        def start(thread):
            if next(left, None) is None:
                raise RuntimeError("can't start new thread")
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        threads.for_array_record.cache_clear()

    yield limit
    threads.for_array_record.cache_clear()


def test_a_data_set_whose_reader_would_lack_threads_is_refused(at_most, config):
    directory = prepare(config.dataset)
    before = threading.active_count()
    at_most(30)
    with pytest.raises(
        InputError, match="104 more threads are needed, 30 could be started.*ulimit -u"
    ):
        data.open_dataset(directory)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("mode", "left", "reason"),
    [
        ("train", -1, r"\d+ more threads are needed, \d+ could be started"),
        ("train", 10, r"104 more threads are needed, (9|10) could be started"),
        ("train", 104, "can't start new thread"),  # Python's own words, for a thread of ours
        ("prepare", 103, "104 more threads are needed, 103 could be started"),
    ],
)
def test_a_command_that_lacks_threads_ends_with_one_line(
    at_most, tmp_path, data_dir, mode, left, reason
):
    at_most(threads.OF_JAX + left)
    own = tmp_path / "own" if mode == "prepare" else data_dir
    where = (f"--workdir={tmp_path / 'run'}", f"--config.dataset.data_dir={own}")
    code, out, err = command(*runs.TINY, f"--mode={mode}", *where)
    assert code == 2
    assert re.fullmatch(rf"error: [^\n]*{reason}[^\n]*: raise the limit on processes [^\n]+\n", err)
    assert out == ""
    assert not list(tmp_path.rglob("*.incomplete"))
