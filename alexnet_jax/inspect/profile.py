"""Time and memory of a training step: a trace, the compiler's counts, the layers one by one."""

import itertools
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import augment, data, optim, parallel
from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.inspect.layer_times import layer_times, seconds
from alexnet_jax.programs import cached_rows, lowered_step, train_batches
from alexnet_jax.setting import Setting, open_setting
from alexnet_jax.state import initial_state

WARM, TIMED, TRACED = 2, 5, 3  # steps


def profile(config: ConfigDict, workdir: pathlib.Path) -> str:
    """Run a few training steps of `config`, and return tables of what they cost.

    Writes the tables to `profile.json` in `workdir`, and under `tensorboard/` a trace of some steps
    for TensorBoard's profile plugin, XProf or Perfetto.

    The compiler's counts are of one device and count the body of a loop once. The layers are timed
    one by one on one device, with the rows that it computes at a time (layer_times.py). Of a split
    network this device computes both columns, so no shares of the step are given. The rest of the
    step is the collectives, the host, and what the layers gain or lose by fusion.

    Raises:
      InputError: the data or the devices do not match the config, or `workdir` holds a run.
    """
    for name in ("config.json", "metrics.jsonl", "checkpoints"):
        if (workdir / name).exists():
            raise InputError(
                f"--workdir={workdir} holds a run; give another directory for --mode=profile"
            )
    setting = open_setting(config)
    config = setting.config
    (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
    statistics_ = augment.statistics_of(setting.dataset, config.augment)
    state = setting.sharding.replicate(initial_state(config, statistics_))
    cached = cached_rows(setting)
    [step] = parallel.compiled(lowered_step(setting, state, cached))
    batches = train_batches(setting, step, cached, 0)

    def taken(number: int) -> list[float]:
        nonlocal state
        each: list[float] = []
        for batch in itertools.islice(batches, number):
            with jax.profiler.StepTraceAnnotation("train", step_num=len(each)):
                began = time.perf_counter()
                state, metrics = jax.block_until_ready(step(state, batch))
                each.append(time.perf_counter() - began)
        return each

    taken(WARM)
    step_seconds = statistics.median(taken(TIMED))
    with jax.profiler.trace(workdir / "tensorboard"):
        taken(TRACED)
    report = {
        "device": parallel.devices(),
        "batch_size": config.batch_size,
        "step_seconds": step_seconds,
        "images_per_second": config.batch_size / step_seconds,
        "compiler": _compilers_count(step),
        "parts": _parts(setting, setting.sharding.unreplicate(state), step_seconds),
    }
    config_lib.write_json(report, workdir / "profile.json")
    return _text(report)


def _compilers_count(step: Any) -> dict[str, float]:
    """Return the compiler's counts of what a step costs one device."""
    costs, memory = step.cost_analysis() or {}, step.memory_analysis()
    counted = {"flops": costs.get("flops"), "bytes accessed": costs.get("bytes accessed")}
    for kind in ("argument", "output", "alias", "temp", "generated_code"):
        counted[f"{kind} bytes"] = getattr(memory, f"{kind}_size_in_bytes", None)
    counted["peak bytes"] = getattr(memory, "peak_memory_in_bytes", None)
    return {name: value for name, value in counted.items() if value is not None}


def _parts(setting: Setting, state: Any, step_seconds: float) -> dict[str, dict[str, float]]:
    """Return the seconds of each part of a step, and its share of `step_seconds`."""
    config, sharding = setting.config, setting.sharding
    rows = config.batch_size // sharding.shares // config.accumulate_steps
    state = jax.device_put(state)  # on one device
    batch = next(data.train_batches(setting.dataset, seed=config.seed, batch_size=rows))

    def augmented(images: jax.Array) -> jax.Array:
        key, ids = jax.random.key(0), jnp.arange(rows)
        return augment.random_crops(key, ids, images, state.statistics, config.augment)

    def updated(gradient: Any, opt_state: Any, params: Any) -> Any:
        return optim.from_config(config, params).update(gradient, opt_state, params)

    images = jnp.asarray(batch["image"])
    augment_jit, update_jit = jax.jit(augmented), jax.jit(updated)
    times = {"augment": {"forward": seconds(augment_jit, images)}}
    times |= layer_times(config, state.params, augment_jit(images))
    for of_part in times.values():  # each part of the batch takes this time once per step
        for name in of_part:
            of_part[name] *= config.accumulate_steps
    update = seconds(update_jit, state.params, state.opt_state, state.params)
    times["update"] = {"forward": update}
    if sharding.column_axis is None:
        for of_part in times.values():
            of_part["share"] = sum(of_part.values()) / step_seconds
    return times


def _text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['step_seconds'] * 1e3:,.1f} ms per step of {report['batch_size']} images on"
        f" {report['device']}: {report['images_per_second']:,.0f} images/s",
        "",
        "one device, as counted by the compiler",
    ]
    for name, value in report["compiler"].items():
        lines.append(f"  {name:<22}{value / 1e6:>14,.1f} M")
    lines += ["", f"{'part, by itself':<18}{'forward ms':>12}{'backward ms':>13}{'share':>9}"]
    total = 0.0
    for name, of_part in report["parts"].items():
        backward = f"{of_part['backward'] * 1e3:,.2f}" if "backward" in of_part else ""
        share = f"{of_part['share']:.1%}" if "share" in of_part else ""
        total += of_part.get("share", 0.0)
        lines.append(f"{name:<18}{of_part['forward'] * 1e3:>12,.2f}{backward:>13}{share:>9}")
    if total:
        lines.append(f"{'the rest':<18}{'':>25}{1 - total:>9.1%}")
    return "\n".join(lines)
