"""All experiments of the paper that are not recorded yet, in order of value, within some minutes.

    python experiments/paper/pending.py --list
    python experiments/paper/pending.py --minutes=10 --cifar10=DIR --imagewoof=DIR

Each row is one command of this folder with its seeds, and records what has ended after each run, in
OUT/NAME.json, .csv and .png. With --at_once=4, four rows share the device, because one run of a
small net leaves a large GPU idle for more than half of the time; `bits`, which measures speed, runs
alone. When the minutes are over, the active runs are asked to save and stop (allow them half a
minute more), and the same command continues. So does another machine, if it has WORKDIR and OUT
from before: finished runs of the large nets keep their records there and no checkpoints. A row
whose images are not given is left out.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLL = 0.3  # seconds between looks at which rows have ended
STOPPED = (0, 130, -signal.SIGINT)  # exit codes without a failure; the last while Python starts
TIMED = ("bits",)  # scripts that measure speed: nothing else runs beside them
sys.path.insert(0, str(ROOT))

from experiments import command_line

THREE, FIVE = ("0", "1", "2"), ("0", "1", "2", "3", "4")
# Of the recipe as it is but for its classes; what else is here changes no result.
WOOF = (
    *("--config.model.num_classes=10", "--config.dataset.cache=device"),
    "--config.log_every_steps=10",
)
PARTS = "full no_lrn no_overlap two_columns half_width no_colour no_crops_flips no_dropout"
PARTS += " without_conv3 without_conv4 without_conv5 bfloat16"


class Row(NamedTuple):
    """A command: `script` with `arguments`, trained on `data` ('' for none), and what it costs.

    `runs` counts them; `minutes` are an estimate for one H200, from the rates seen there.
    """

    name: str
    script: str
    data: str
    arguments: tuple[str, ...]
    runs: str
    minutes: float

    def command(self, given: argparse.Namespace) -> list[str]:
        """Return its command line; data and places are those `given`."""
        places = [f"--workdir={given.workdir / self.name}", f"--out={given.out / self.name}"]
        if self.script == "numerics":
            places = places[1:]
        arguments = list(self.arguments)
        images = getattr(given, self.data) if self.data else None
        if self.script == "bits":  # a command line of run.py, after --
            fields = command_line.dataset(str(images)) if images else ()
            arguments = ["--", *arguments, *fields]
        elif images:
            places.append(f"--data={images}")
        script = ROOT / f"experiments/paper/{self.script}.py"
        return [sys.executable, str(script), *places, *arguments]


ROWS = (
    Row("bits", "bits", "imagewoof",
        ("--config=configs/alexnet.py", *WOOF[:2], "--config.num_steps=200",
         "--config.checkpoint_every_steps=50"), "6", 5),
    Row("numerics", "numerics", "", (), "all tests", 4),
    Row("recipes_imagewoof", "recipes", "imagewoof",
        ("--drop_checkpoints", *WOOF, "--seeds", *FIVE), "15", 20),
    Row("figure1", "figure1", "cifar10",
        ("--config.dataset.cache=device", "--seeds", *THREE), "14 at most", 12),
    Row("ablations_imagewoof", "ablations", "imagewoof",
        ("--drop_checkpoints", *WOOF, "--only", *PARTS.split(), "--seeds", *FIVE), "60", 80),
    Row("cifar10_13pct", "cifar10", "cifar10", ("--net=13pct", "--seeds", *THREE), "3", 20),
    Row("cifar10_11pct", "cifar10", "cifar10", ("--net=11pct", "--seeds", *THREE), "3", 22),
)  # fmt: skip


def state(row: Row, out: pathlib.Path) -> tuple[bool, str]:
    """Return whether nothing of `row` is pending, and what OUT has of it, in words."""
    try:
        found = json.loads((out / f"{row.name}.json").read_text())
        runs = [run["status"] for run in found["runs"]]
        pending = found.get("pending")  # files of before do not have it
    except (OSError, ValueError, KeyError, TypeError):
        return False, f"nothing of {row.runs}"
    counts = {"recorded": sum(status in ("finished", "there") for status in runs),
              "failed": runs.count("failed"), "pending": len(pending or ())}  # fmt: skip
    words = [f"{n} {what}" for what, n in counts.items() if n]
    words += ["more may be pending"] if pending is None else []
    return pending == [], ", ".join(words)


def listing(rows: Sequence[Row], out: pathlib.Path) -> str:
    """Return a line of each row: its name, what is recorded, and what it costs."""
    lines = [f"{'row':20} {'minutes on an H200 (estimate)':30} recorded"]
    for row in rows:
        lines.append(f"{row.name:20} {row.minutes:<30g} {state(row, out)[1]}")
    return "\n".join(lines)


def run(rows: Sequence[Row], given: argparse.Namespace) -> int:
    """Run what is pending of `rows` until the minutes are over; return 1 if a command failed.

    Rows that are running then, or when an interrupt comes, are asked to save and stop.
    """
    waiting = []
    for row in rows:
        if state(row, given.out)[0]:
            continue
        if row.data and getattr(given, row.data) is None:
            print(f"left out: {row.name}: give --{row.data}=DIR", file=sys.stderr)
        else:
            waiting.append(row)
    end_by, failed = time.monotonic() + 60 * given.minutes, False
    running: dict[Row, subprocess.Popen] = {}
    try:
        while (waiting or running) and (left := end_by - time.monotonic()) > 0:
            timed = any(row.script in TIMED for row in (*running, *waiting[:1]))
            at_once = 1 if timed else given.at_once
            if waiting and len(running) < at_once:
                row = waiting.pop(0)
                print(f"{row.name}: {left / 60:.1f} minutes left", file=sys.stderr, flush=True)
                running[row] = _started(row.command(given), at_once > 1)
                continue
            time.sleep(POLL)
            for row in [row for row, process in running.items() if process.poll() is not None]:
                failed |= running.pop(row).returncode not in STOPPED
                print(f"{row.name}: {state(row, given.out)[1]}", file=sys.stderr, flush=True)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for row, process in running.items():
            failed |= process.wait() not in STOPPED
            print(f"{row.name}: {state(row, given.out)[1]}", file=sys.stderr, flush=True)
    return int(failed)


def _started(command: list[str], shares: bool) -> subprocess.Popen:
    """Start `command`, which `shares` the device with others or has it alone.

    Its own session, so that a Ctrl-C, which a terminal sends to all, reaches it once, from here.
    """
    environment = dict(os.environ)
    if shares:  # by default the first process takes three quarters of a GPU's memory
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--at_once", type=int, default=1, help="rows at the same time; default: 1")
    parser.add_argument("--list", action="store_true", help="show what is recorded, run nothing")
    parser.add_argument("--cifar10", type=command_line.path, help="CIFAR-10, train/ and test/")
    parser.add_argument("--imagewoof", type=command_line.path, help="imagewoof160, train/ and val/")
    parser.add_argument("--workdir", type=command_line.path, default=pathlib.Path("runs/paper"))
    parser.add_argument("--out", type=command_line.path, help="default: WORKDIR/results")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS])
    given = parser.parse_args()
    if given.at_once < 1:
        parser.error(f"--at_once={given.at_once}: must be at least 1")
    given.workdir = given.workdir.absolute()
    given.out = (given.out or given.workdir / "results").absolute()
    for name in ("cifar10", "imagewoof"):
        if (folder := getattr(given, name)) is not None:
            command_line.dataset(str(folder.absolute()))
            setattr(given, name, folder.resolve())
    rows = [row for row in ROWS if row.name in (given.only or [row.name])]
    if given.list:
        print(listing(rows, given.out))
        return 0
    code = run(rows, given)
    print(listing(rows, given.out))
    return code


if __name__ == "__main__":
    command_line.main(main)
