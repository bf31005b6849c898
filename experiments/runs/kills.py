"""Kill runs again and again, and compare their ends with that of an undisturbed one.

python experiments/runs/kills.py --kills=1000 --out=experiments/results/kills --scratch=DIR -- \
  --config=configs/quickstart.py --config.num_steps=120 ...

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
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alexnet_jax.errors import InputError
from alexnet_jax.host import cores, whole_files
from alexnet_jax.rundir import versions
from experiments import command_line
from experiments.runs.run_differences import differences, saved_steps
from experiments.runs.run_phases import PHASES, POLL, Layout, Process

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
