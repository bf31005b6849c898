"""Memory that a step frees is kept for the next step (alexnet_jax/host/heap.py)."""

import os
import platform
import subprocess
import sys

import pytest

from alexnet_jax import command_line
from alexnet_jax.host import heap
from experiments.runs import run_process
from tests.runs import ROOT, TINY

# The most page faults of three 64 MB blocks after a first, each taken by a thread of its own: XLA
# takes its in threads.
_FAULTS = """
import ctypes, resource, sys, threading
from alexnet_jax import heap
if sys.argv[1] == "keep":
    heap.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 26)
    ctypes.memset(ctypes.c_void_p(block), 1, 1 << 26)
    libc.free(block)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
found = []
for _ in range(4):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(max(found[1:]))
"""


def _faults(what: str, **environment: str) -> int:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", _FAULTS, what]
    said = subprocess.check_output(command, cwd=ROOT, env=kept | environment, text=True)
    return int(said)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_blocks_are_reused_unless_the_environment_sets_malloc():
    pages = (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    without = _faults("no")
    assert _faults("keep") < pages / 100
    # Huge pages, where the system gives them unasked, take fewer faults than pages.
    assert without > pages / 1000
    assert _faults("keep", MALLOC_ARENA_MAX="4") == pytest.approx(without, rel=0.5)


def test_the_command_line_keeps_freed_memory_from_the_start_on_a_cpu(monkeypatch, capsys):
    called, found = [], [False]
    monkeypatch.setattr(heap, "keep", lambda: called.append("keep"))
    monkeypatch.setattr(heap, "accelerator_expected", lambda: found[0])
    monkeypatch.setattr(command_line.compilation_cache, "keep", lambda: called.append("programs"))
    monkeypatch.setattr(command_line, "dispatch", lambda *_: called.append("the rest"))
    for accelerator, expected in ((False, ["keep"]), (True, [])):
        found[0] = accelerator
        assert command_line.main(["run.py", TINY[0], "--mode=summary"]) == 0
        assert called == [*expected, "programs", "the rest"]
        called.clear()


@pytest.mark.parametrize(
    ("platforms", "packages", "devices", "hidden", "expected"),
    [
        ("cpu", ["jax_plugins"], ["nvidia0"], None, False),
        ("cuda,cpu", ["jax_plugins"], [], None, True),
        (None, ["jax_plugins"], ["nvidia0", "nvidiactl"], None, True),
        (None, ["jax_plugins"], [], None, False),  # jax[cuda] on a machine without a GPU
        (None, [], ["nvidia0"], None, False),  # a GPU, and a JAX that does not know it
        (None, ["jax_plugins"], ["nvidia0"], "", False),
        (None, ["libtpu"], ["vfio/0"], None, True),
        (None, ["libtpu"], ["vfio/vfio"], None, False),
    ],
)
def test_an_accelerator_is_expected_where_jax_can_use_one(
    monkeypatch, tmp_path, platforms, packages, devices, hidden, expected
):
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    for name, value in (("JAX_PLATFORMS", platforms), ("CUDA_VISIBLE_DEVICES", hidden)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(heap.importlib.util, "find_spec", lambda name: name in packages or None)
    monkeypatch.setattr(heap, "_DEVICES", tmp_path)
    for device in devices:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    assert heap.accelerator_expected() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_the_runs_of_an_experiment_keep_freed_memory(tmp_path, monkeypatch):
    """That process also has a thread; the setting would have no effect after its start."""
    (tmp_path / "run.py").write_text(_FAULTS)
    monkeypatch.setattr(run_process, "ROOT", tmp_path)
    with run_process.running(["keep"], tmp_path) as process:
        assert process.wait(60) == 0
    said = (tmp_path / run_process.LOG).read_text().splitlines()
    assert int(said[-1]) < (1 << 26) // os.sysconf("SC_PAGE_SIZE") / 100
