"""SIGINT and SIGTERM in every phase of a run; another one ends the process at once."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from alexnet_jax.signals import StopRequest
from tests import runs

BUSY = """
import hashlib
from alexnet_jax.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    # One call, without Python's lock as XLA's compiler: its handlers would wait for the end.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def _signal_when(process, says, number):
    """Read stderr until a line has `says` in it, send the signal; return code, stdout, stderr."""
    read = []
    for line in process.stderr:
        read.append(line)
        if says in line:
            process.send_signal(number)
            break
    out, rest = process.communicate(timeout=120)
    return process.returncode, out, "".join(read) + rest


def test_a_stop_leaves_alone_what_takes_long():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.unless_requested(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            stop.unless_requested(lambda: 1 // 0)
        kill = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        kill.start()
        assert stop.unless_requested(lambda: time.sleep(100)) is None
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_as_they_are():
    requests = []

    def work():
        with StopRequest() as stop:
            requests.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_whatever_it_is_at(number):
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
    assert err == "stopped at once; the same command goes on from the last save\n"


def test_an_error_ends_the_process_whatever_threads_wait_for_ever():
    """As a thread of orbax does that could not open its files."""
    code = (
        "import threading; from alexnet_jax.signals import leave;"
        "threading.Thread(target=threading.Event().wait).start(); print('said'); leave(2)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=runs.ROOT, text=True, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "said\n")


@pytest.mark.parametrize(
    ("phase", "arguments", "says", "last"),
    [
        ("imports", (), None, "stopped before anything was begun"),
        ("prepare", ("--mode=prepare",), "preparing digits", "stopped; the same command goes on"),
        ("prepare, then train", (), "preparing digits", "stopped; the same command goes on"),
        ("compile", (), "batches of 16 on 1 cpu", "stopped at step 0 of 9; the same command"),
    ],
)
def test_a_stop_exits_with_0_and_says_so_in_one_line(
    tmp_path, data_dir, phase, arguments, says, last
):
    own = tmp_path if "prepare" in phase else data_dir
    larger = ("--config.dataset.image_size=500",) if "prepare" in phase else ()
    process = runs.start(
        *runs.TINY,
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={own}",
        "--config.num_steps=9",
        *larger,
        *arguments,
        # A program that was compiled before would be read from the tests' cache.
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    if says is None:
        while "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.terminate()
        _, err = process.communicate(timeout=60)
        code = process.returncode
    else:
        code, _, err = _signal_when(process, says, signal.SIGTERM)
    assert code == 0, err
    assert err.splitlines()[-1].startswith(last), err
    assert "Traceback" not in err
    assert "compiled the training step" not in err
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


def test_evaluating_stops(tmp_path, data_dir):
    done = runs.run(
        *runs.TINY,
        f"--workdir={tmp_path}",
        f"--config.dataset.data_dir={data_dir}",
        "--config.num_steps=1",
    )
    assert done.returncode == 0, done.stderr
    before = sorted((p, p.stat().st_mtime) for p in tmp_path.rglob("*"))
    told = {"JAX_LOG_COMPILES": "true", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = runs.start("--mode=evaluate", f"--workdir={tmp_path}", environment=told)
    # The first batch, which waits for its program.
    code, out, err = _signal_when(process, "Finished tracing _fun", signal.SIGTERM)
    assert code == 0, err
    assert "Traceback" not in err
    assert out == "stopped\n"
    assert sorted((p, p.stat().st_mtime) for p in tmp_path.rglob("*")) == before
