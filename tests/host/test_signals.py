"""SIGINT and SIGTERM in every phase of a run; another one ends the process immediately."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from alexnet_jax.host import StopRequest
from tests import runs

BUSY = """
import hashlib
from alexnet_jax.host.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    # One call, without Python's lock as XLA's compiler: its handlers would wait for the end.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def _signal_when(process, says, number):
    """Send the signal when stderr contains `says`; return exit code, stdout, stderr."""
    read = ""
    while says not in read and (character := process.stderr.read(1)):
        read += character
    process.send_signal(number)
    out, rest = process.communicate(timeout=120)
    return process.returncode, out, read + rest


def test_outside_the_main_thread_signal_handlers_do_not_change():
    requests = []

    def work():
        with StopRequest() as stop:
            requests.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_process_that_is_busy(number):
    command = [sys.executable, "-c", BUSY]
    process = subprocess.Popen(
        command, cwd=runs.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        time.sleep(0.02)
        process.send_signal(number)  # the same request, as timeout(1) sends it to the group as well
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err == "stopped immediately; the same command resumes from the last save\n"


IN_COMPILATION = "batches of 16 on 1 cpu"


@pytest.mark.parametrize(
    ("says", "number"),
    [
        pytest.param(None, signal.SIGTERM, id="imports"),
        pytest.param(IN_COMPILATION, signal.SIGINT, id="compilation"),
        pytest.param(None, signal.SIGINT, id="imports, SIGINT", marks=pytest.mark.slow),
        pytest.param(
            IN_COMPILATION, signal.SIGTERM, id="compilation, SIGTERM", marks=pytest.mark.slow
        ),
    ],
)
def test_before_the_first_step_a_signal_has_the_default_effect(tmp_path, data_dir, says, number):
    process = runs.start(
        *runs.TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=9",
        # The tests' cache would have the program already.
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    if says is None:
        while "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert err == ""
    else:
        _, _, err = _signal_when(process, says, number)
    assert process.returncode == -number, err
    assert "Traceback" not in err
    assert "compiled in" not in err
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--mode=prepare",), id="prepare"),
        pytest.param((), id="train", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_preparation_says_that_it_continues(tmp_path, arguments):
    process = runs.start(
        *runs.TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tmp_path}",
        "--config.dataset.image_size=500",
        *arguments,
    )
    code, _, err = _signal_when(process, "img/s]", signal.SIGTERM)  # the progress bar
    assert code == 128 + signal.SIGTERM, err
    assert err.endswith("stopped; the same command continues from what is finished\n"), err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_stop_while_saving_waits_for_the_save(tmp_path, data_dir):
    command = (
        *runs.TINY,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=100",
        "--config.checkpoint_every_steps=1",
    )
    process = runs.start(*command)
    while process.poll() is None:
        if list(tmp_path.glob("checkpoints/*tmp*")):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.002)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.splitlines()[-1].endswith("of 100; the same command continues"), err
    stopped = len(runs.metrics(tmp_path))
    assert not list(tmp_path.glob("checkpoints/*tmp*"))
    assert str(stopped) in [p.name for p in (tmp_path / "checkpoints").iterdir()]
