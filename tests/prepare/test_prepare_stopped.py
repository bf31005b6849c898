"""Preparing that fails or is killed: what is left, and that it continues from there."""

import json
import os
import pathlib
import resource
import shutil
import signal
import time

import ml_collections
import pytest
from PIL import Image

from alexnet_jax.errors import InputError
from alexnet_jax.prepare import merge, prepare, shards, stored_set, workers
from tests.prepared import PREPARE, config, contents, left_behind, noise, run


@pytest.fixture
def file_size_limit():
    """Return a function that limits the bytes of a file; longer ones fail as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [64, 300])  # 75 kB fail when the file is closed, 1.6 MB before
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, folder, size, file_size_limit):
    file_size_limit(40_000)
    with pytest.raises(
        InputError, match=r"^cannot write .*File too large.*it needs about"
    ) as caught:
        prepare(config(tmp_path, path=folder, image_size=size))
    assert "\n" not in str(caught.value)
    assert "--config.dataset.data_dir" in str(caught.value)
    assert not left_behind(tmp_path)


def test_raw_set_that_cannot_fit_is_refused_before_it_is_started(tmp_path, folder, monkeypatch):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(stored_set, "_image_bytes", lambda _: usage.f_bavail * usage.f_frsize)
    with pytest.raises(InputError, match=r"it needs .* GB, free are .* GB"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_fewer_records_read_back_than_written_are_refused(tmp_path, folder, monkeypatch):
    class Forgetful(shards.ArrayRecordWriter):
        def write(self, record):
            if record[-1] % 2:
                super().write(record)

    monkeypatch.setattr(shards, "ArrayRecordWriter", Forgetful)
    with pytest.raises(InputError, match=r"records written, \d+ read back"):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def children(process):
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The fields of a preparation by two processes that was killed when some shards were done."""
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(noise(400, 400, 3)).save(tmp_path / "big.png")
    for i in range(40):
        (tmp_path / "pets" / "train" / "cat" / f"{i}.png").hardlink_to(tmp_path / "big.png")
    shutil.copytree(tmp_path / "pets" / "train", tmp_path / "pets" / "val", copy_function=os.link)
    fields = config(tmp_path, path=tmp_path / "pets").to_dict()
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 4 * 8 * 8 * 3)  # 10 shards per split
    monkeypatch.setattr(stored_set, "IMAGES_PER_PROCESS", 40)
    process = run(PREPARE.format(before=SMALL_SHARDS, fields=fields))
    wait_for(lambda: list(tmp_path.glob("alexnet_jax/*.incomplete/*.done")))
    workers = children(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(workers) >= 2
    wait_for(lambda: not any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers))
    return fields


SMALL_SHARDS = """
import os
from alexnet_jax.prepare import stored_set as lib
lib.SHARD_BYTES, lib.IMAGES_PER_PROCESS = 4 * 8 * 8 * 3, 40
os.sched_getaffinity = lambda pid: range(2)
"""


def test_killed_preparation_continues_from_the_finished_shards(tmp_path, killed, monkeypatch):
    [leftover] = left_behind(tmp_path)
    assert leftover.suffix == ".incomplete", "it must not be taken for a finished one"
    finished = sorted(file.with_suffix("") for file in leftover.glob("*.done"))
    before = {file.name: file.stat().st_mtime_ns for file in finished}
    assert 0 < len(finished) < 20
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    directory = prepare(ml_collections.ConfigDict(killed))
    assert left_behind(tmp_path) == [directory]
    assert {name: (directory / name).stat().st_mtime_ns for name in before} == before
    whole = prepare(config(tmp_path / "other", path=tmp_path / "pets"))
    assert contents(directory) == contents(whole)


def test_interrupt_leaves_finished_shards_and_nothing_else(tmp_path, folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merge, "_write_statistics", interrupt)
        prepare(config(tmp_path, path=folder))
    monkeypatch.setattr(workers, "make_shard", None)  # nothing is made again
    directory = prepare(config(tmp_path, path=folder))
    assert left_behind(tmp_path) == [directory]
    assert not list(directory.glob("*.done")) + list(directory.glob("*.tmp"))


def test_interrupt_before_the_first_shard_leaves_nothing(tmp_path, folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "load_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path, path=folder))
    assert not left_behind(tmp_path)


def test_a_bad_image_leaves_the_finished_shards_to_continue_from(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(stored_set, "SHARD_BYTES", 8 * 8 * 3)  # one image each
    for i in range(100):
        (folder / "val" / "dog" / f"more{i}.png").hardlink_to(folder / "val" / "dog" / "0.png")
    (folder / "val" / "dog" / "z.png").write_text("not an image")
    with pytest.raises(InputError, match=r"dog/z\.png .*110 finished shards are kept in"):
        prepare(config(tmp_path, path=folder))
    statistics = prepare(config(tmp_path, path=folder, on_error="skip")) / "statistics.json"
    assert len(json.loads(statistics.read_text())["undecodable"]) == 1
