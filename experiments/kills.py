"""Kill runs again and again, and compare their ends with that of an undisturbed one.

python experiments/kills.py --kills=1000 --out=experiments/results/kills --scratch=DIR -- \
  --config=configs/quickstart.py --config.num_steps=90 ...

What follows `--` is the command line of run.py without --workdir. A run is killed five times, once
aimed at each of its phases: the compilation, the training, an evaluation, a save and, last, the ten
crops. A kill comes a random time after the run has shown that it is in the phase, after a random
step. One half are SIGKILL, the others SIGTERM, once or followed by a second signal. Then the run is
left to end, and is compared with an undisturbed one (run_differences.py).

OUT.json is written after each run: what every kill was aimed at, where the run was when it came,
and what differed in the end. The same command continues it until all kills are done. The run
directory of a difference is kept in DIR.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alexnet_jax.errors import InputError
from alexnet_jax.host import cores, whole_files
from alexnet_jax.rundir import quarantine, versions
from experiments import command_line
from experiments.run_differences import differences, saved_steps

PHASES = ("compile", "train", "evaluate", "save", "ten_crop")  # beside them: start, end
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {  # devices of a CPU, arguments
    "one": (1, ()),
    "two": (2, ()),
    "split": (2, ("--config.model.groups=2", "--config.parallel=split")),
}
# Each with the shortest and longest wait before its second signal: the same one counts as another
# request after half a second only.
SIGNALS = {
    (signal.SIGKILL,): (0.0, 0.0),
    (signal.SIGTERM,): (0.0, 0.0),
    (signal.SIGTERM, signal.SIGINT): (0.0, 0.1),
    (signal.SIGTERM, signal.SIGTERM): (0.51, 0.6),
}
WEIGHTS = (3, 1, 1, 1)
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


def kill(
    layout: Layout, workdir: pathlib.Path, aim: str, after: int, rng: random.Random
) -> tuple[dict[str, Any] | None, list[str]]:
    """Start the run, kill it, and return the kill, None if it has ended before, and what is wrong.

    It is aimed at the first phase `aim` when step `after` was logged; if none comes any more, at
    the ten crops.
    """
    fraction = rng.random()
    [signals] = rng.choices(list(SIGNALS), WEIGHTS)
    wait = rng.uniform(*SIGNALS[signals])
    with contextlib.ExitStack() as opened:
        cache = layout.directory / "cache"
        if aim == "compile":
            cache = pathlib.Path(opened.enter_context(tempfile.TemporaryDirectory()))
        process = opened.enter_context(Process(layout, workdir, cache))
        while process.alive(POLL):
            phase, step = process.shown()
            if phase == "ten_crop" or (phase == aim and (step >= after or aim == "compile")):
                break
        delay = fraction * layout.lengths.get(phase, 0.0)
        if not process.alive(delay):
            return None, process.end()[1]
        phase, step = process.shown()
        process.send(signals[0])
        if len(signals) == 2 and process.alive(wait):
            process.send(signals[1])
        code, wrong = process.end(*signals)
        if signals[0] == signal.SIGKILL:
            phase, step = process.shown()  # by what it has left
    done = {"aim": aim, "after": after, "delay": round(delay, 3)}
    done |= {"signals": " ".join(number.name for number in signals), "wait": round(wait, 3)}
    return done | {"phase": phase, "step": step, "code": code}, wrong


def killed_run(layout: Layout, number: int, seed: int) -> dict[str, Any]:
    """Return the record of run `number`, killed once in each phase and then left to its end."""
    rng = random.Random(f"{seed} {number}")
    aims = [*rng.sample(PHASES[:-1], len(PHASES) - 1), PHASES[-1]]
    afters = sorted(rng.randrange(layout.evaluated[-1]) for _ in aims)
    workdir = pathlib.Path(tempfile.mkdtemp(prefix=f"run-{number}-", dir=layout.directory))
    kills: list[dict[str, Any]] = []
    stops: set[int] = set()
    for aim, after in zip(aims, afters, strict=True):
        done, wrong = kill(layout, workdir, aim, after, rng)
        kills += [done] if done else []
        stops |= saved_steps(workdir)
        if wrong or not done:
            break
    if not wrong:
        with Process(layout, workdir, layout.directory / "cache") as process:
            wrong = process.end()[1]
    wrong = wrong or differences(layout.directory / "straight", workdir, stops)
    if not wrong:
        shutil.rmtree(workdir)
    return {"run": number, "layout": layout.directory.name, "kills": kills, "wrong": wrong}


def undisturbed(name: str, given: argparse.Namespace) -> Layout:
    """Return the layout `name`, and what two runs to the end have shown, which must not differ.

    The first one compiles. The second one finds the programs, as those to be killed will.
    """
    devices, arguments = LAYOUTS[name]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    directory = given.scratch.resolve() / name
    first, straight, cache = (directory / part for part in ("first", "straight", "cache"))
    for path in (first, straight, cache):
        shutil.rmtree(path, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, str(ROOT / "run.py"), *given.arguments, *arguments)
    layout = Layout(directory, command, os.environ | {"XLA_FLAGS": flags.strip()})
    with Process(layout, first, cache) as process:
        _, wrong = process.end()
        compiled = re.search(r"compiled in ([\d.]+) s", process.said())
    if wrong or not compiled:
        raise InputError(f"the undisturbed run has failed: {wrong}")
    lines = map(json.loads, (first / "metrics.jsonl").read_text().splitlines())
    evaluated = tuple(line["step"] for line in lines if line["split"] == "val")
    layout = dataclasses.replace(layout, evaluated=evaluated)
    seconds: dict[str, float] = collections.defaultdict(float)
    stretches: dict[str, int] = collections.defaultdict(int)
    last, since = "start", time.monotonic()
    with Process(layout, straight, cache) as process:
        while process.alive(POLL):
            phase, now = process.shown()[0], time.monotonic()
            seconds[last] += now - since
            stretches[phase] += phase != last
            last, since = phase, now
        _, wrong = process.end()
    if wrong := wrong or differences(first, straight):
        raise InputError(f"two undisturbed runs of {directory} differ: {wrong}")
    lengths = {phase: seconds[phase] / (stretches[phase] or 1) for phase in PHASES}
    lengths |= {"compile": float(compiled[1]), "train": seconds["train"] / evaluated[-1]}
    return dataclasses.replace(layout, lengths=lengths)


def write(record: dict[str, Any], out: pathlib.Path) -> None:
    """Write `record` as OUT.json, whole or not at all: counts first, then a line for each run."""
    every = [(run["layout"], done) for run in record["runs"] for done in run["kills"]]
    counts: dict[str, Any] = {
        "kills": len(every),
        "runs_that_ended": len(record["runs"]),
        "runs_with_differences": [run["run"] for run in record["runs"] if run["wrong"]],
        "signals": collections.Counter(done["signals"] for _, done in every),
        "exit_codes": collections.Counter(str(done["code"]) for _, done in every),
        "phases": {
            layout: collections.Counter(done["phase"] for of, done in every if of == layout)
            for layout in record["layouts"]
        },
    }
    head = {name: value for name, value in record.items() if name != "runs"} | counts
    runs = ",\n".join(f"  {json.dumps(run)}" for run in record["runs"])
    with whole_files(out.parent) as directory:
        text = f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'
        (directory / f"{out.name}.json").write_text(text)


def read(given: argparse.Namespace) -> dict[str, Any]:
    """Return what OUT.json holds, or the beginning of a record. Raise InputError for another's."""
    settings = {
        "arguments": command_line.without_places(given.arguments),
        "seed": given.seed,
        "layouts": given.layouts,
    }
    path = given.out.with_name(f"{given.out.name}.json")
    record = json.loads(path.read_text()) if path.exists() else {"sessions": [], "runs": []}
    if path.exists() and {name: record.get(name) for name in settings} != settings:
        raise InputError(f"{path} is the record of another command; choose another --out")
    return settings | record


def stress(given: argparse.Namespace) -> dict[str, Any]:
    """Kill runs of run.py until there are `given.kills`, and return the record of them."""
    record, end_by = read(given), time.monotonic() + given.minutes * 60.0
    layouts = functools.cache(functools.partial(undisturbed, given=given))
    session: dict[str, Any] = {"date": datetime.date.today().isoformat(), "versions": versions()}
    record["sessions"].append(session | {"cores": cores()})
    under_way: set[concurrent.futures.Future] = set()
    numbers = (n for n in itertools.count() if n not in {run["run"] for run in record["runs"]})
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        while True:
            kills = sum(len(run["kills"]) for run in record["runs"])
            while (
                len(under_way) < given.jobs
                and kills + len(PHASES) * len(under_way) < given.kills
                and time.monotonic() < end_by
            ):
                number = next(numbers)
                layout = layouts(given.layouts[number % len(given.layouts)])
                under_way.add(pool.submit(killed_run, layout, number, given.seed))
            if not under_way:
                return record
            try:
                done, under_way = concurrent.futures.wait(
                    under_way, return_when=concurrent.futures.FIRST_COMPLETED
                )
            except KeyboardInterrupt:  # those under way are recorded, a second signal ends at once
                end_by = 0.0
                continue
            for future in done:
                record["runs"].append(run := future.result())
                write(record, given.out)
                print(json.dumps(run), flush=True)


def main() -> int:
    """Do what the command line says; return 1 if any run has differed."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in all, at least; default: 100")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; default: 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=command_line.path, required=True, help="for the runs")
    parser.add_argument("--out", type=command_line.path, required=True, help="without extension")
    parser.add_argument("arguments", nargs="+", help="of run.py, after --")
    record = stress(parser.parse_args())
    return int(any(run["wrong"] for run in record["runs"]))


if __name__ == "__main__":
    command_line.main(main)
