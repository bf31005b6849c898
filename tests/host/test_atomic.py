"""Files that are written whole or not at all (alexnet_jax/host/atomic.py)."""

import pytest

from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files


def test_all_files_are_replaced_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with whole_files(tmp_path) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), KeyboardInterrupt(), InputError("")]
)
def test_no_file_is_written_if_one_fails(tmp_path, error):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a").write_text("old")
    for name in ("there", "new"):
        with (
            pytest.raises(InputError if isinstance(error, OSError) else type(error)),
            whole_files(tmp_path / name) as scratch,
        ):
            (scratch / "a").write_text("new")
            raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "a"]
    assert (tmp_path / "there/a").read_text() == "old"


def test_no_file_is_written_if_a_directory_has_the_name_of_one(tmp_path):
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(InputError, match="cannot be written .b is a directory.; make room, or"),
        whole_files(tmp_path) as scratch,
    ):
        (scratch / "a").write_text("new")
        (scratch / "b").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
