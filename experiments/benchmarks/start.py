"""How long a run takes to its first step, cold and warm: nothing compiled yet, or all of it.

    python experiments/benchmarks/start.py --out=experiments/results/start \
      --run=configs/quickstart.py \
      --run="configs/alexnet.py --config.dataset.name=folder --config.dataset.path=IMAGES
             --config.model.num_classes=10"

The data are prepared before. Each measurement is a process of its own, cold and warm in turns,
`--rounds` times; the medians are reported, in seconds from the start of the process:

imports   until the command line has been read (`run.py --help` in all);
data      until the data set is open and the first state made;
compiled  until the programs are compiled, or read;
step      until the first step has been taken and its line is in metrics.jsonl.

On a GPU `--steps=300 --choices searched unchecked no_fusions unsearched` answers what the search
for the fastest kernels costs and gains. Of each choice, which is made by XLA_FLAGS (CHOICES below),
it also reports `images_per_second` of the last of so many steps, which no evaluation interrupts;
with `dataset.cache=device` they do not wait for images. Evaluations are compiled without a search
whatever the choice. On a CPU the choices are the same.
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
import threading
import time
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.command_line import without_places

# What XLA times on a GPU: by default all, and each result is compared with another's.
CHOICES = {
    "searched": "",
    "unchecked": "--xla_gpu_autotune_level=2",
    "no_fusions": "--xla_gpu_experimental_enable_fusion_autotuner=false",
    "unsearched": "--xla_gpu_autotune_level=0",
}


def measure(arguments: list[str], home: pathlib.Path, choice: str, steps: int) -> dict[str, float]:
    """Return the seconds after which each phase of a run of `arguments` had ended.

    And the `images_per_second` of step number `steps`, if that is not the first.
    """
    command = [sys.executable, "run.py"]
    only_steps = [f"--config.num_steps={steps}", "--config.eval_every_epochs=1000000"]
    environment = os.environ | {"XDG_CACHE_HOME": str(home)}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHOICES[choice]}".strip()
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    subprocess.run([*command, "--help"], cwd=ROOT, env=environment, capture_output=True, check=True)
    seconds = {"imports": time.perf_counter() - began}
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, *arguments, *only_steps, f"--workdir={workdir}/run"],
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
            if line.startswith("compiled in"):
                seconds["compiled"] = time.perf_counter() - began
                break
        lines = pathlib.Path(workdir, "run", "metrics.jsonl")
        said = threading.Thread(target=process.stderr.read)  # or the pipe fills up
        said.start()
        taken: list[dict[str, float]] = []
        while not taken or taken[-1]["step"] < steps:
            time.sleep(0.01)
            if process.poll() is not None and process.returncode:
                raise SystemExit(f"{arguments} failed")
            whole = lines.read_text().rpartition("\n")[0] if lines.exists() else ""
            taken = [x for x in map(json.loads, whole.splitlines()) if x["split"] == "train"]
            if taken and "step" not in seconds:
                seconds["step"] = time.perf_counter() - began
        if steps > 1:
            seconds["images_per_second"] = taken[-1]["images_per_second"]
        process.kill()  # not to wait for the evaluation
        said.join()
        process.wait()
        process.stderr.close()
    return seconds


def command(options: argparse.Namespace) -> str:
    """Return the command line that measures the same, without where anything lies."""
    words = [f"--run={shlex.join(without_places(shlex.split(run)))}" for run in options.run]
    words += ["--out=OUT", f"--rounds={options.rounds}", f"--steps={options.steps}"]
    words += ["--choices", *options.choices]
    return shlex.join(["python", "experiments/benchmarks/start.py", *words])


def in_turns(arguments: list[str], choice: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of the cold and of the warm starts with one of CHOICES."""
    rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as home:
            for of_kind in rounds.values():
                of_kind.append(measure(arguments, pathlib.Path(home), choice, options.steps))
    return {
        kind: {p: round(statistics.median(r[p] for r in of_kind), 2) for p in of_kind[0]}
        | {"all_steps": [round(r["step"], 2) for r in of_kind]}
        for kind, of_kind in rounds.items()
    }


def main() -> None:
    """Measure all runs and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of which the last is timed")
    parser.add_argument("--choices", nargs="+", choices=tuple(CHOICES), default=["searched"])
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
        for choice in options.choices:
            name = words[0] if choice == "searched" else f"{words[0]} {choice}"
            results[name] = in_turns(arguments, choice, options)
            print(name, json.dumps(results[name]), flush=True)
            report = {
                "command": command(options),
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
