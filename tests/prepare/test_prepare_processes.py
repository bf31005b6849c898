"""Preparing by several processes and machines, and at the same time as others."""

import fcntl
import os
import signal
import weakref
from collections.abc import Sequence

import pytest

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare, shards, stored_set, workers
from alexnet_jax.prepare.examples import Example
from tests.prepared import (
    PREPARE,
    config,
    contents,
    noise,
    run,
)


def test_one_and_four_processes_give_the_same_bytes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 400)
    monkeypatch.setattr(stored_set, "IMAGES_PER_PROCESS", 1)
    fields = {"path": folder, "encoding": "jpeg"}
    used = []
    make_shards = stored_set.make_shards
    monkeypatch.setattr(
        stored_set,
        "make_shards",
        lambda jobs, processes, report: (
            used.append(processes) or make_shards(jobs, processes, report)
        ),
    )
    directories = []
    for number in (1, 4):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, number=number: range(number))
        directories.append(prepare(config(tmp_path / str(number), **fields)))
    assert used[0] == 1
    assert used[1] > 1
    assert contents(directories[0]) == contents(directories[1])


def test_shares_of_machines_merge_to_the_same_bytes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 8 * 8 * 3)
    whole = prepare(config(tmp_path / "whole", path=folder))
    for i in (2, 0, 1):
        directory = prepare(config(tmp_path, path=folder), share=f"{i}/3")
        assert not directory.exists()
    incomplete = directory.with_name(directory.name + ".incomplete")
    assert len(list(incomplete.glob("*.done"))) == 10
    with monkeypatch.context() as patch:
        patch.setattr(workers, "make_shard", None)  # merging makes no shard
        assert prepare(config(tmp_path, path=folder)) == directory
    assert contents(directory) == contents(whole)
    assert prepare(config(tmp_path, path=folder), share="1/3") == directory


def test_a_missing_share_is_made_when_merging(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 8 * 8 * 3)
    whole = prepare(config(tmp_path / "whole", path=folder))
    prepare(config(tmp_path, path=folder), share="1/2")
    assert contents(prepare(config(tmp_path, path=folder))) == contents(whole)


@pytest.mark.parametrize("share", ["3/3", "1", "-1/2", "a/b", "1/0", ""])
def test_a_malformed_share_is_refused(tmp_path, folder, share):
    with pytest.raises(InputError, match=r"--prepare_shard=.*: give i/n"):
        prepare(config(tmp_path, path=folder), share=share)


class Deadly(Sequence):
    """Images that kill the process that reads them, as the system does when out of memory."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_ends_preparing_with_its_reason(tmp_path):
    jobs = [
        shards.Job(tmp_path / f"shard{i}", Deadly(), config(tmp_path), num_classes=1, allowed=0)
        for i in range(2)
    ]
    with pytest.raises(InputError, match=r"made shard\d was killed, .* out of memory"):
        list(workers.make_shards(jobs, 2, lambda number: None))
    assert not list(tmp_path.glob("*.done"))


def test_second_process_waits_and_finds_the_set_finished(tmp_path, folder):
    elsewhere = prepare(config(tmp_path / "elsewhere", path=folder))
    directory = tmp_path / "alexnet_jax" / elsewhere.name
    directory.parent.mkdir()
    fields = config(tmp_path, path=folder).to_dict()
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process prepares, and is slow
        other = run(PREPARE.format(before="", fields=fields))
        assert other.stderr.readline() == f"waiting: another process is preparing {directory}\n"
        elsewhere.rename(directory)
    out, err = other.communicate(timeout=60)
    assert (out.strip(), err) == (str(directory), "")


class Fleeting(Sequence):
    """Images that are counted for as long as anything refers to them."""

    held = most = 0

    def __len__(self):
        return 300

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        pixels = noise(8, 8, 3, seed=index)
        weakref.finalize(pixels, self.count, -1)
        self.count(1)
        return Example(pixels, 0, f"image {index}")

    def count(self, change):
        self.held += change
        self.most = max(self.most, self.held)


def test_a_shard_is_made_with_few_images_in_memory(tmp_path):
    examples = Fleeting()
    job = shards.Job(tmp_path / "shard", examples, config(tmp_path), num_classes=1, allowed=0)
    assert shards.make_shard(job, lambda number: None) == []
    assert shards.finished(job.path).sums.count == 300
    assert examples.most <= 3


def test_tensorflow_is_never_imported(tmp_path, folder):
    fields = config(tmp_path, path=folder).to_dict()
    code = PREPARE.format(before="", fields=fields) + "assert 'tensorflow' not in sys.modules\n"
    process = run(code)
    assert process.wait(timeout=60) == 0, process.stderr.read()
