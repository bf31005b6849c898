"""run.py in a process of its own, which its parent watches and never leaves behind.

The process is begun by this file as a script. Its standard input is a pipe of which only its parent
holds the other end: when that is closed, or the parent has ended, however it did, the run is asked
to save and stop. There is no other way to stop it, so that it is asked once.
"""

import contextlib
import json
import os
import pathlib
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLL = 0.3  # seconds between looks at what a run has written
LOG = "log.txt"
COMMAND = "$ "  # there, before the command line of each session


@contextlib.contextmanager
def running(arguments: Sequence[str], directory: pathlib.Path) -> Iterator[subprocess.Popen]:
    """Run `run.py arguments` within the context; what it prints is added to `directory`/log.txt.

    Where the context is left before the run has ended, it is stopped, and waited for.
    """
    with (directory / LOG).open("a") as log:
        log.write(f"{COMMAND}{shlex.join(['python', 'run.py', *arguments])}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__)), str(ROOT / "run.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the parent's, which stops the run once
        )
    try:
        yield process
    finally:
        stop(process)
        process.wait()


def stop(process: subprocess.Popen) -> None:
    """Ask a run of `running` to save and stop; once more, or at its end, that does nothing."""
    assert process.stdin is not None
    process.stdin.close()


@contextlib.contextmanager
def echoed(directory: pathlib.Path) -> Iterator[None]:
    """Print what the run says within the context: each line of its log.txt, after its name."""
    left = threading.Event()

    def follow() -> None:
        begun, last = "", False
        while not last:
            last = left.wait(POLL)  # before the reading, so that the end is not missed
            *lines, begun = (begun + log.read()).split("\n")
            for line in [*lines, begun] if last else lines:
                if line.strip() and not line.startswith(COMMAND):
                    print(f"{directory.name}: {line.rstrip()}", file=sys.stderr, flush=True)

    with (directory / LOG).open("a+", errors="replace") as log:
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()


def validations(
    process: subprocess.Popen, directory: pathlib.Path
) -> Iterator[dict[str, Any] | None]:
    """Yield the `val` lines of the run's metrics.jsonl as they come, and None after each look.

    Lines that were there before and those that a resumed run repeats come (again) as well.
    """
    path = directory / "metrics.jsonl"
    inode, offset, ended = 0, 0, False
    while not ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
            ended = True
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            now = os.fstat(file.fileno())
            if now.st_ino != inode or now.st_size < offset:  # a resumed run writes it again
                inode, offset = now.st_ino, 0
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                if b'"val"' in line:
                    with contextlib.suppress(ValueError):  # torn by a crash of the machine
                        yield json.loads(line)
        yield None


def failure(directory: pathlib.Path, code: int) -> str:
    """Return why the last run in `directory` ended with `code`, in one line."""
    lines = [line.strip() for line in (directory / LOG).read_text(errors="replace").splitlines()]
    begun = max(i for i, line in enumerate(lines) if line.startswith(COMMAND))
    lines = [line for line in lines[begun + 1 :] if line]
    said = [line for line in lines if line.startswith("error: ")] or lines or [""]
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    return f"{how}: {said[-1][:500]}"


def _stop_with_the_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    # run.py does so too, but a thread that is there before has a heap of its own. By the file's
    # path, for the package imports JAX, and until then nobody would see the parent end.
    runpy.run_path(str(ROOT / "alexnet_jax/host/heap.py"))["keep_on_cpu"]()
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
