"""Output that cannot be written does not stop a run (alexnet_jax/host/streams.py)."""

import json
import subprocess
import sys

import pytest

from tests import runs


def _with(redirections, *arguments, **options):
    """Run `python` with arguments and the shell's `redirections`."""
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, *arguments]
    pipe = subprocess.PIPE
    return subprocess.run(command, cwd=runs.ROOT, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize("redirections", [">/dev/full 2>&1", "0<&- >&- 2>&-"])
def test_a_run_without_standard_streams_finishes(tmp_path, data_dir, redirections):
    done = _with(
        redirections,
        "run.py",
        *runs.TINY,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=2",
        env=runs.cpu_devices(),
    )
    assert done.returncode == 0
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 2
    texts = [path.read_bytes() for path in tmp_path.rglob("*.json*")]
    assert not any(b"images of" in text or b"validation top-1" in text for text in texts)


PRINTS = """
import sys
from alexnet_jax.host import streams
from alexnet_jax.errors import InputError
streams.never_fail()
for _ in range(30000):
    print("a line")
print("the last", file=sys.stderr)
try:
    streams.refuse_loss()
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
FULL = "standard output cannot be written (No space left on device); give another place\n"


@pytest.mark.parametrize(
    ("redirections", "code", "out", "err"),
    [
        (">/dev/full", 2, "", f"the last\n{FULL}"),
        ("2>/dev/full", 0, "a line\n" * 30000, ""),
        ("2>/dev/full >&2", 2, "", ""),
    ],
)
def test_lost_output_is_an_error_only_on_standard_output(redirections, code, out, err):
    done = _with(redirections, "-c", PRINTS)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_a_reader_that_closes_the_pipe_is_not_an_error():
    command = [sys.executable, "-c", PRINTS]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=runs.ROOT, text=True, stdout=pipe, stderr=pipe)
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.stderr.read() == "the last\n"
    assert process.wait(60) == 0
