"""A limit of the process that is met is told as what it is, and not as damage or a full disk."""

import errno
import os

import pytest

from alexnet_jax import InputError, data, errors, prepare
from alexnet_jax.data import dataset, records, stored_images
from alexnet_jax.host import whole_files
from alexnet_jax.prepare import images
from tests import prepared

TOO_MANY = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
REMEDY = "raise the limit on open files .ulimit -n."


def _fails(error):
    def function(*_, **__):
        raise error

    return function


def test_the_remedy_is_that_of_the_limit():
    of_libraries = RuntimeError("open failed: Too many open files in system; path")
    assert errors.limit_met(TOO_MANY) == errors.limit_met(of_libraries)
    assert "ulimit -u" in errors.limit_met(RuntimeError("Resource temporarily unavailable"))
    assert errors.limit_met(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) is None


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_records_are_not_called_damaged(tmp_path, monkeypatch, on_error):
    stored = stored_images.Stored([(str(tmp_path / "a"), 4)], 8, jpeg=True)
    read = records.Records(stored, on_error)
    monkeypatch.setattr(stored_images, "ArrayRecordReader", _fails(RuntimeError(str(TOO_MANY))))
    with pytest.raises(InputError, match=f"record 0 of .*Too many open files.*: {REMEDY}$"):
        read.read(0, None)
    assert not read.damaged


def test_a_data_set_is_not_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.json, "loads", _fails(TOO_MANY))
    (tmp_path / "statistics.json").write_text("{}")
    with pytest.raises(InputError, match=f"cannot be read .*Too many open files.*: {REMEDY}$"):
        data.open_dataset(tmp_path)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_image_is_not_left_out_and_no_room_is_to_be_made(
    folder, tmp_path, monkeypatch, on_error
):
    monkeypatch.setattr(images.Image, "open", _fails(TOO_MANY))
    config = prepared.config(tmp_path / "data", path=folder, on_error=on_error)
    with pytest.raises(InputError, match=f"cannot write .*Too many open files.: {REMEDY}$"):
        prepare.prepare(config)


def test_files_that_cannot_be_written_for_it_say_so(tmp_path):
    with (
        pytest.raises(InputError, match=f"cannot be written .Too many open files.; {REMEDY}$"),
        whole_files(tmp_path),
    ):
        raise TOO_MANY
