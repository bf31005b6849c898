"""Worker processes: the same batches as from threads, the same errors, and no process left over."""

import errno
import gc
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alexnet_jax.data import buffers, eval_batches, open_dataset, train_batches, workers
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare
from alexnet_jax.train import train_and_evaluate
from tests import prepared, runs
from tests.data.test_records import damage

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memfd")
TRAIN, SIZE = 220, 16


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def path(request, tmp_path_factory):
    return _prepared(tmp_path_factory.mktemp("data"), request.param)


@pytest.fixture
def raw(tmp_path):
    return _prepared(tmp_path, "raw")


def _prepared(root, encoding):
    folder = prepared.make_folder(root / "images", train=TRAIN // 2, val=7, size=SIZE)
    return prepare(prepared.config(root / "data", path=folder, image_size=SIZE, encoding=encoding))


def take(number, batches):
    return list(itertools.islice(batches, number))


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


def pids(dataset):
    """Return the workers of a data set that are alive."""
    [of_set] = dataset._workers.values()
    return [process.pid for process in of_set._processes if process.poll() is None]


def alive(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def await_end(processes):
    deadline = time.monotonic() + 20
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "a worker is left over"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [1, 3])
def test_batches_are_those_of_threads_from_any_step(path, number):
    dataset = open_dataset(path)
    options = {"seed": 3, "batch_size": 70, "start_step": 2}
    threads = take(5, train_batches(dataset, num_threads=2, **options))
    assert_same(take(5, train_batches(dataset, num_workers=number, **options)), threads)
    assert len(pids(dataset)) == number
    evaluated = list(eval_batches(dataset, batch_size=9, num_workers=number))
    assert_same(evaluated, list(eval_batches(dataset, batch_size=9, num_threads=1)))
    assert len(pids(dataset)) == number, "evaluation uses the same processes"


def test_two_iterators_take_turns_and_two_processes_of_a_run_share_the_batch(path):
    whole = take(4, train_batches(open_dataset(path), seed=0, batch_size=80, num_workers=2))
    dataset = open_dataset(path)
    shares = [
        train_batches(
            dataset, seed=0, batch_size=80, process_index=p, process_count=2, num_workers=2
        )
        for p in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=False):
        joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        assert_same([joined], [batch])
    assert len(pids(dataset)) == 2


def test_a_caller_may_keep_more_batches_than_the_shared_memory_holds(path):
    dataset = open_dataset(path)
    kept = take(60, train_batches(dataset, seed=0, batch_size=11, num_workers=2))
    assert sum(buffers.place(batch["image"]) is None for batch in kept) > 10
    assert_same(kept, take(60, train_batches(dataset, seed=0, batch_size=11, num_threads=1)))


def test_memory_and_files_do_not_grow_with_the_number_of_batches_and_iterators(path):
    dataset = open_dataset(path)

    def used():
        own = len(list(pathlib.Path("/proc/self/fd").iterdir()))
        [first, *_] = pids(dataset)
        maps = pathlib.Path(f"/proc/{first}/maps").read_text().count("alexnet_jax-batches")
        files = len(list(pathlib.Path(f"/proc/{first}/fd").iterdir()))
        return own, maps, files

    def work():
        for _ in eval_batches(dataset, batch_size=5, num_workers=1):
            pass
        take(12, train_batches(dataset, seed=0, batch_size=40, num_workers=1))
        gc.collect()

    work()
    before = used()
    for _ in range(4):
        work()
    deadline = time.monotonic() + 10
    while used() > before:  # a task that is under way still has its memory
        assert time.monotonic() < deadline, (used(), before)
        time.sleep(0.02)


def test_workers_import_neither_jax_nor_tensorflow_datasets(path):
    code = workers._CODE.replace("work({connection}, {progress})", "")
    code = code.format(packages=workers._packages())
    code += f"""
from alexnet_jax.data.stored_images import Stored, StoredImages
import numpy as np
stored = Stored(*{tuple(open_dataset(path).records["train"].images.stored)!r})
StoredImages(stored).read(3, np.empty(({SIZE}, {SIZE}, 3), np.uint8))
heavy = {{"jax", "jaxlib", "flax", "tensorflow_datasets", "tensorflow", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_damage_is_named_replaced_and_counted_as_by_threads(raw, capsys, on_error):
    [file] = raw.glob("pictures-train.array_record-*")
    damage(file, 5)
    damage(file, TRAIN - 1)
    found = {}
    for how in ("num_threads", "num_workers"):
        dataset = open_dataset(raw, on_error)
        batches = train_batches(dataset, seed=0, batch_size=55, **{how: 2})
        if on_error == "raise":
            with pytest.raises(InputError, match=r"record \d+ of .*on_error=skip") as caught:
                take(4, batches)
            assert re.search("record (5|219) of", str(caught.value))
            assert next(batches, None) is None
        else:
            found[how] = take(4, batches)
            assert dataset.num_damaged == 2
            assert capsys.readouterr().err.count("skipped: record") == 2
            take(4, train_batches(dataset, seed=0, batch_size=55, **{how: 2}))
            assert dataset.num_damaged == 2, "a record counts once"
    if found:
        assert_same(*found.values())


def test_more_than_one_percent_is_refused_whichever_worker_finds_it(raw):
    [file] = raw.glob("pictures-train.array_record-*")
    for index in (1, 101, 201):
        damage(file, index)
    batches = train_batches(open_dataset(raw, "skip"), seed=0, batch_size=55, num_workers=2)
    with pytest.raises(InputError, match=r"more than 1% of the 220 records are damaged"):
        take(4, batches)


def test_more_than_one_percent_is_refused_whoever_has_found_it(raw):
    """A thread that is a batch ahead may have counted the record that this one comes to."""
    dataset = open_dataset(raw, "skip")
    records = dataset.records["train"]
    records.damaged.update((1, 101, 201))
    with pytest.raises(InputError, match=r"more than 1% of the 220 records are damaged"):
        records.read(1, np.empty(dataset.mean_image.shape, np.uint8))


# --- processes that end -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "was killed, .*out of memory"), (signal.SIGSEGV, "-11")]
)
def test_a_worker_that_dies_is_told_with_its_record_and_is_replaced(raw, number, how):
    dataset = open_dataset(raw)
    batches = train_batches(dataset, seed=0, batch_size=64, num_workers=1)
    next(batches)
    [pid] = pids(dataset)
    os.kill(pid, number)
    with pytest.raises(InputError, match=rf"process .*decoded record \d+ of .*train.* {how}"):
        take(10, batches)
    again = take(3, train_batches(dataset, seed=0, batch_size=64, num_workers=1))
    assert_same(again, take(3, train_batches(dataset, seed=0, batch_size=64, num_threads=1)))


def test_a_worker_that_died_idle_is_told_too(raw):
    """It had read further in its last task than the next one has rows."""
    dataset = open_dataset(raw)
    list(eval_batches(dataset, batch_size=64, split="train", num_workers=1))
    [pid] = pids(dataset)
    os.kill(pid, signal.SIGKILL)
    await_end([pid])
    with pytest.raises(InputError, match=r"decoded record 0 of .*val.* was killed"):
        take(1, eval_batches(dataset, batch_size=5, num_workers=1))


def test_a_limit_of_this_process_is_not_called_the_end_of_a_worker(raw, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    dataset = open_dataset(raw)
    monkeypatch.setattr(workers.multiprocessing.reduction, "send_handle", refuse)
    with pytest.raises(InputError, match="cannot be reached .*ulimit -n"):
        take(1, train_batches(dataset, seed=0, batch_size=64, num_workers=1))


def test_what_stops_a_run_does_not_stop_its_workers(raw):
    dataset = open_dataset(raw)
    batches = train_batches(dataset, seed=0, batch_size=64, num_workers=2)
    next(batches)
    for pid in pids(dataset):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
    take(6, batches)
    assert len(pids(dataset)) == 2


def test_workers_end_with_the_data_set(raw):
    dataset = open_dataset(raw)
    take(2, train_batches(dataset, seed=0, batch_size=64, num_workers=2))
    processes = pids(dataset)
    assert len(processes) == 2
    del dataset
    gc.collect()
    await_end(processes)


ENDLESS = """
import sys
from alexnet_jax import data
dataset = data.open_dataset(sys.argv[1])
for step, batch in enumerate(data.train_batches(dataset, seed=0, batch_size=64, num_workers=2)):
    if step == 3:
        [of_set] = dataset._workers.values()
        print(*(process.pid for process in of_set._processes), flush=True)
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT],
)
def test_workers_end_with_their_parent_and_say_nothing(raw, number):
    """The signal goes to the process group, as that of Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(raw)],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    workers_ = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers_) == 2
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    await_end(workers_)
    assert process.returncode == -number
    assert err.count("Traceback") == (number == signal.SIGINT), err  # Python's own


# --- which, and where they cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "platform", "expected"),
    [(1, "gpu", 0), (2, "gpu", 0), (4, "gpu", 0), (16, "gpu", 16), (16, "tpu", 16), (16, "cpu", 0)],
)
def test_processes_decode_by_default_where_an_accelerator_waits_for_many_cores(
    monkeypatch, cores, platform, expected
):
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers.jax, "default_backend", lambda: platform)
    assert workers.by_default() == expected


@pytest.mark.parametrize("batches", [lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches])
@pytest.mark.parametrize("given", [{"num_threads": 2, "num_workers": 2}, {"num_workers": -1}])
def test_numbers_that_make_no_sense_are_refused(raw, batches, given):
    with pytest.raises(InputError, match="num_workers="):
        batches(open_dataset(raw), batch_size=8, **given)


def _no_memory(monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buffers.os, "memfd_create", refuse)
    return "No space left on device"


def _no_process(monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", "/does/not/exist")
    return "No such file or directory"


def _no_threads(monkeypatch):
    """array_record would wait for ever, so a worker does not let it begin."""
    refuse = """
from alexnet_jax.errors import InputError
from alexnet_jax.host import threads
def refuse(number):
    raise InputError("more threads are needed")
threads.refuse_too_few = refuse
work("""
    monkeypatch.setattr(workers, "_CODE", workers._CODE.replace("work(", refuse))
    return "more threads are needed"


@pytest.mark.parametrize("lacking", [_no_memory, _no_process, _no_threads])
def test_where_processes_cannot_be_started_threads_decode_and_one_line_says_so(
    raw, monkeypatch, capsys, lacking
):
    expected = take(3, train_batches(open_dataset(raw), seed=0, batch_size=64, num_threads=1))
    reason = lacking(monkeypatch)
    with pytest.raises(InputError, match=rf"2 processes .*{reason}.*num_threads"):
        take(1, train_batches(open_dataset(raw), seed=0, batch_size=64, num_workers=2))
    monkeypatch.setattr(workers, "by_default", lambda: 2)
    assert_same(take(3, train_batches(open_dataset(raw), seed=0, batch_size=64)), expected)
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(rf"warning: 2 processes .*{reason}.*threads decode", line)


@pytest.mark.slow
def test_a_run_with_workers_is_the_same_to_the_bit(finished_run, config, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "by_default", lambda: 2)
    config.checkpoint_every_steps, config.num_steps = 2, 4
    train_and_evaluate(config, tmp_path / "run")
    for split in ("train", "val"):
        lines = [runs.metrics(directory, split) for directory in (finished_run, tmp_path / "run")]
        for line in itertools.chain(*lines):
            del line["images_per_second"]
        assert lines[0] == lines[1]
