"""Kill a run with SIGKILL again and again, and compare its end with that of an undisturbed one.

python experiments/kills.py --kills=100 --out=experiments/results/kills --scratch=DIR -- \
  --config=configs/quickstart.py --config.num_steps=400 ...

What follows `--` is the command line of run.py without --workdir. Moments are drawn uniformly from
the shortest time that a run has taken to its end; each fifth kill comes in the middle of a save.
A run that ends is compared and begun anew until all kills are done; the last one runs to its
end. Writes OUT.json: how many kills came where, and whether all was equal to the bit.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from alexnet_jax.rundir import checkpoint, scalars, versions

IN_SAVES = 5  # each so manieth kill


def differences(straight: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Return what differs between two finished runs, other than times: nothing, if all is well.

    Compared to the bit are every array of the latest checkpoint, every line of metrics.jsonl, every
    scalar in TensorBoard's files, once, and the result.
    """
    states = [checkpoint.load(path, "latest")[1] for path in (straight, other)]
    first, second = map(jax.tree.leaves_with_path, states)
    found = [
        f"state{jax.tree_util.keystr(path)}"
        for (path, a), (_, b) in zip(first, second, strict=True)
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
    for part in (_lines, _shown, _result):
        of_runs = [part(path) for path in (straight, other)]
        if of_runs[0] != of_runs[1]:
            found.append(part.__name__.strip("_"))
    return found


def _lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line | {"images_per_second": 0} for line in lines]


def _shown(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
    found = scalars(workdir / "tensorboard")
    return sorted(scalar for scalar in found if "images_per_second" not in scalar[1])


def _result(workdir: pathlib.Path) -> dict[str, Any]:
    result = json.loads((workdir / "result.json").read_text())
    return {name: v for name, v in result.items() if name not in ("seconds", "device", "versions")}


def stress(
    command: list[str],
    directory: pathlib.Path,
    *,
    kills: int,
    seed: int,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Kill `command` --workdir=`directory`/killed, and return the record of it.

    Raises RuntimeError where a process ends otherwise than by the kill or as finished.
    """
    rng = random.Random(seed)
    straight, killed = directory / "straight", directory / "killed"
    began = time.perf_counter()
    _to_its_end(command, straight, environment)
    duration = time.perf_counter() - began
    record: dict[str, Any] = {"kills": 0, "before_the_first_step": 0, "in_saves": 0, "later": 0}
    record |= {"runs_that_ended": 0, "differences": []}
    while record["kills"] < kills:
        in_save = record["kills"] % IN_SAVES == IN_SAVES - 1
        began = time.perf_counter()
        where = _kill(command, killed, environment, rng.uniform(0, duration), in_save)
        if where is None:  # it has ended before
            duration = min(duration, time.perf_counter() - began)
            _ended(record, straight, killed)
            shutil.rmtree(killed)
        else:
            record["kills"] += 1
            record[where] += 1
    _to_its_end(command, killed, environment)
    _ended(record, straight, killed)
    return record | {"equal": not record["differences"]}


def _ended(record: dict[str, Any], straight: pathlib.Path, killed: pathlib.Path) -> None:
    record["runs_that_ended"] += 1
    record["differences"] += differences(straight, killed)


def _start(
    command: list[str], workdir: pathlib.Path, environment: Mapping[str, str] | None
) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _to_its_end(
    command: list[str], workdir: pathlib.Path, environment: Mapping[str, str] | None
) -> None:
    process = _start(command, workdir, environment)
    _, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {err}")


def _kill(
    command: list[str],
    workdir: pathlib.Path,
    environment: Mapping[str, str] | None,
    seconds: float,
    in_save: bool,
) -> str | None:
    """Start, kill after `seconds` or `in_save`, and return where; None if it ended before."""
    process = _start(command, workdir, environment)
    began = time.perf_counter()
    left = _saves(workdir)  # by an earlier kill; there until the run begins
    while process.poll() is None:
        if _saves(workdir) - left if in_save else time.perf_counter() - began >= seconds:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, err = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"exit code {process.returncode}: {err}")
    if _saves(workdir) - left:
        return "in_saves"
    trained = "compiled the training step" in err
    return "later" if trained else "before_the_first_step"


def _saves(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """Return name and time of checkpoints that are being written, or were when a process died."""
    found = set()
    for path in workdir.glob("checkpoints/*tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it has its name meanwhile
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=pathlib.Path, required=True, help="for the run directories"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path without extension")
    parser.add_argument("arguments", nargs="+", help="of run.py")
    given = parser.parse_args()
    began = time.perf_counter()
    record = stress(
        [sys.executable, "run.py", *given.arguments],
        given.scratch,
        kills=given.kills,
        seed=given.seed,
    )
    record = {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions(),
        "arguments": [a for a in given.arguments if "data_dir" not in a],
        "seconds": round(time.perf_counter() - began),
        **record,
    }
    given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
