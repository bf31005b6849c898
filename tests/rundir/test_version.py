"""The record of the code that a run was made with."""

import pathlib
import shutil
import subprocess

import pytest

from alexnet_jax.rundir import version


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git")
def test_the_commit_is_that_of_the_code_not_of_a_repository_around_an_installed_copy(
    tmp_path, monkeypatch
):
    code = tmp_path / "site-packages/version.py"
    code.parent.mkdir()
    shutil.copy(version.__file__, code)
    monkeypatch.setattr(version, "__file__", str(code))
    asked = version.versions.__wrapped__  # not what is remembered of this code

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=me", "-c", "user.email=me@example.com")
        command = ["git", "-C", tmp_path, *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    pathlib.Path(tmp_path, "mine.txt").write_text("a project that uses the package")
    git("add", "mine.txt")
    git("commit", "--no-gpg-sign", "-m", "mine")
    assert "commit" not in asked()

    git("add", "site-packages")
    git("commit", "--no-gpg-sign", "-m", "a copy of its own")
    assert asked()["commit"] == git("rev-parse", "HEAD")
