"""A run in a process of its own, and the phase that it is in, by what it has written."""

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import time
from typing import Self

from alexnet_jax.rundir import quarantine
from experiments.runs.run_differences import saved_steps

PHASES = ("compile", "train", "evaluate", "save", "ten_crop")  # beside them: start, end
POLL = 0.004  # seconds between looks at what a run has written
LIMIT = 300  # seconds after which a process is killed, and that it had to be is a finding


@dataclasses.dataclass(frozen=True)
class Layout:
    """A command with its environment, and what its undisturbed run has shown.

    Attributes:
      directory: holds the runs.
      evaluated: steps that are followed by an evaluation; the last one ends the run.
      lengths: seconds that each of PHASES takes; of 'train', a step.
    """

    directory: pathlib.Path
    command: tuple[str, ...]
    environment: dict[str, str]
    evaluated: tuple[int, ...] = ()
    lengths: dict[str, float] = dataclasses.field(default_factory=dict)


class Process:
    """A process of the run in `workdir`, and where it is. A context that ends it."""

    def __init__(self, layout: Layout, workdir: pathlib.Path, cache: pathlib.Path) -> None:
        self._layout, self._workdir = layout, workdir
        self._before = self._metrics_inode()
        self._stderr = workdir.with_name(f"{workdir.name}.stderr")
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [*layout.command, f"--workdir={workdir}"],
                env=layout.environment | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for this script
            )
        self._end_by = time.monotonic() + LIMIT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stderr.unlink()

    def _metrics_inode(self) -> int:
        lines = self._workdir / "metrics.jsonl"
        return lines.stat().st_ino if lines.exists() else 0

    def said(self) -> str:
        """Return what the process has written on stderr."""
        return self._stderr.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def alive(self, seconds: float) -> bool:
        """Return whether the process still runs after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        if time.monotonic() > self._end_by:
            self._process.kill()
        return self._process.returncode is None

    def shown(self) -> tuple[str, int]:
        """Return the phase and the last step that was logged, by what the run has written."""
        if (self._workdir / "result.json").exists():
            return "end", self._layout.evaluated[-1] if self._layout.evaluated else 0
        if self._metrics_inode() == self._before:  # a run opens it anew when all is compiled
            return "compile" if " training and " in self.said() else "start", 0
        step, split = self._last_line()
        if any(self._workdir.glob("checkpoints/*-tmp")):  # a run begins with removing old ones
            return "save", step
        if step == self._layout.evaluated[-1] and split == "val":
            return "ten_crop" if step in saved_steps(self._workdir) else "save", step
        evaluates = split == "train" and step in self._layout.evaluated
        return "evaluate" if evaluates else "train", step

    def _last_line(self) -> tuple[int, str]:
        whole = (self._workdir / "metrics.jsonl").read_text().rpartition("\n")[0]
        if not whole:
            return 0, "train"
        line = json.loads(whole.rpartition("\n")[2])
        return line["step"], line["split"]

    def end(self, *signals: signal.Signals) -> tuple[int, list[str]]:
        """Wait for the end, and return the exit code and what is wrong, after these `signals`.

        One that ends the run by the system's default comes before there is anything to save, or
        when all is saved. A second one ends it immediately, and the run says so.
        """
        while self.alive(1.0):
            pass
        code, said, (phase, _) = self._process.returncode, self.said(), self.shown()
        stopped = bool(signals) and "stopped at step" in said
        right = {0: stopped or phase == "end"}
        for number in signals:
            over = stopped or phase in ("start", "compile", "end")
            right[-number] = over or number == signal.SIGKILL
        for number in signals[1:]:
            right[128 + number] = "stopped immediately" in said
        damaged = "damaged" in said or (self._workdir / quarantine.DAMAGED).exists()
        wrong = not right.get(code) or damaged or "Traceback" in said
        return code, [f"exit code {code}: {said[-2000:]}"] if wrong else []
