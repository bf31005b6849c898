"""A training step alone, and with what the host does for it: its batch, and its metrics.

    python experiments/benchmarks/loop.py --config=configs/cifar10_13pct.py \
      --config.dataset.name=folder --config.dataset.path=CIFAR10_PNG --out=OUT

The parts of run.py, with the recipe's config, on the devices there are; in turns, --rounds times
--steps steps each, waited for at the end:

* step: the compiled step, on the same batch again and again: what the devices can do.
* fed: with the next batch each time.
* written: with that, and the metrics written as `log_every_steps` says: what run.py does.
* batches: the batches alone, no step.

The learning rate is next to 0, so that nothing diverges; no time depends on it. Writes OUT.json:
medians and quartiles in milliseconds, and which share of the speed of `step` is left of each.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax

from alexnet_jax import parallel
from alexnet_jax.augment import statistics_of
from alexnet_jax.host import heap
from alexnet_jax.programs import cached_rows, lowered_step, train_batches
from alexnet_jax.rundir import MetricsWriter, RunRecord, device, versions
from alexnet_jax.setting import open_setting
from alexnet_jax.state import initial_state
from experiments import command_line


def measured(
    arguments: list[str], steps: int, rounds: int, workdir: pathlib.Path
) -> dict[str, list[float]]:
    """Return seconds of a step in each round, of each of the four ways."""
    config = command_line.read_config(arguments)
    config.learning_rate = 1e-12
    config.num_steps = 4 * (rounds + 1) * steps + 1
    setting = open_setting(config)
    statistics_ = statistics_of(setting.dataset, config.augment)
    state = setting.sharding.replicate(initial_state(config, statistics_))
    cached = cached_rows(setting)
    [compiled] = parallel.compiled(lowered_step(setting, state, cached))
    batches = train_batches(setting, compiled, cached, 0)
    same = next(batches)
    taken = 0

    def step(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    num_train = setting.dataset.num_train
    with MetricsWriter(workdir, config, num_train, 0, RunRecord()) as writer:

        def written() -> dict[str, jax.Array]:
            nonlocal taken
            taken += 1
            metrics = step(next(batches))
            writer.train(taken, metrics)
            return metrics

        ways: dict[str, Callable[[], Any]] = {
            "step": lambda: step(same),
            "fed": lambda: step(next(batches)),
            "written": written,
            "batches": lambda: next(batches),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for each in range(rounds + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                for _ in range(steps):
                    result = way()
                jax.block_until_ready(result)
                if each:  # the first round warms up
                    times[name].append((time.perf_counter() - begun) / steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="in one turn")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--out", help="path without extension")
    given, arguments = parser.parse_known_args()
    heap.keep_on_cpu()  # as run.py does
    with tempfile.TemporaryDirectory() as workdir:
        times = measured(arguments, given.steps, given.rounds, pathlib.Path(workdir))
    alone = statistics.median(times["step"])
    record = {
        "config": command_line.without_places(arguments),
        "batch_size": command_line.read_config(arguments).batch_size,
        "date": time.strftime("%Y-%m-%d"),
        "device": device(),
        "versions": versions(),
        "milliseconds": {
            name: [float(f"{1e3 * x:.4g}") for x in statistics.quantiles(each, n=4)]
            for name, each in times.items()
        },
        "share_of_the_step": {
            name: round(alone / statistics.median(times[name]), 3) for name in ("fed", "written")
        },
    }
    print(json.dumps(record, indent=1))
    if given.out:
        pathlib.Path(f"{given.out}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
