"""How long a run takes to its first step, cold and warm: nothing compiled yet, or all of it.

    python experiments/benchmarks/start.py --out=experiments/results/start \
      --run=configs/quickstart.py \
      --run="configs/alexnet.py --config.dataset.name=folder --config.dataset.path=IMAGES
             --config.model.num_classes=10"

The data are prepared before. Each measurement is a process of its own, cold and warm in turns,
`--rounds` times; the medians are reported, in seconds from the start of the process:

imports   until the command line has been read (`run.py --help` in all);
data      until the data set is open and the first state made;
compiled  until the training step is compiled, or read;
step      until the first step has been taken and its line is in metrics.jsonl.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.command_line import without_places

PHASES = ("imports", "data", "compiled", "step")


def measure(arguments: list[str], home: pathlib.Path) -> dict[str, float]:
    """Return the seconds after which each phase of a run of `arguments` had ended."""
    command = [sys.executable, "run.py"]
    environment = os.environ | {"XDG_CACHE_HOME": str(home)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    subprocess.run([*command, "--help"], cwd=ROOT, env=environment, capture_output=True, check=True)
    seconds = {"imports": time.perf_counter() - began}
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, *arguments, "--config.num_steps=1", f"--workdir={workdir}/run"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "parameters; batches of" in line:
                seconds["data"] = time.perf_counter() - began
            if line.startswith("compiled the training step"):
                seconds["compiled"] = time.perf_counter() - began
                break
        lines = pathlib.Path(workdir, "run", "metrics.jsonl")
        while not lines.exists() or not lines.read_text():
            time.sleep(0.01)
            assert process.poll() is None, f"{arguments} failed"
        seconds["step"] = time.perf_counter() - began
        process.kill()  # not to wait for the evaluation
        process.communicate()
    return seconds


def command(runs: list[str], rounds: int) -> str:
    """Return the command line that measures `runs`, without where anything lies."""
    words = [f"--run={shlex.join(without_places(shlex.split(run)))}" for run in runs]
    words += ["--out=OUT", f"--rounds={rounds}"]
    return shlex.join(["python", "experiments/benchmarks/start.py", *words])


def main() -> None:
    """Measure all runs and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True, help="path without extension")
    options = parser.parse_args()
    for run in options.run:  # a place is known by its field
        if not run.strip() or not all("=" in word for word in shlex.split(run)[1:]):
            parser.error(f"--run={run!r}: a recipe, and its fields as --config.FIELD=VALUE")
    results: dict[str, dict] = {}
    for run in options.run:
        words = shlex.split(run)
        arguments = [f"--config={words[0]}", *words[1:]]
        subprocess.run(
            [sys.executable, "run.py", "--mode=prepare", *arguments],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as home:
                for of_kind in rounds.values():
                    of_kind.append(measure(arguments, pathlib.Path(home)))
        results[words[0]] = {
            kind: {p: round(statistics.median(r[p] for r in of_kind), 2) for p in PHASES}
            | {"all_steps": [round(r["step"], 2) for r in of_kind]}
            for kind, of_kind in rounds.items()
        }
        print(words[0], json.dumps(results[words[0]]), flush=True)
    report = {
        "command": command(options.run, options.rounds),
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load_1_minute": os.getloadavg()[0],
        "versions": {n: metadata.version(n) for n in ("jax", "flax", "orbax-checkpoint")},
        "rounds": options.rounds,
        "seconds": results,
    }
    pathlib.Path(f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
