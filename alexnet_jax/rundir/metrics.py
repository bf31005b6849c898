"""The metrics of a run: metrics.jsonl, TensorBoard events, and the progress bar."""

import collections
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import flatten
from alexnet_jax.errors import NotFinite
from alexnet_jax.host import regular
from alexnet_jax.optim import total_steps
from alexnet_jax.parallel import to_host
from alexnet_jax.rundir import tensorboard
from alexnet_jax.rundir.filters import mosaic
from alexnet_jax.rundir.progress import Progress, say
from alexnet_jax.rundir.record import RunRecord

COMPARED = ("val/top1_error", "val/loss")  # beside the fields of the config in TensorBoard
CHECKED = ("loss", "gradient_norm", "parameter_norm")  # that they are finite, after every step
WINDOW = 100  # steps over which images per second are averaged
SHOWN = 10  # seconds after which TensorBoard sees what was written


class MetricsWriter:
    """Writer of one run's metrics, continued from `start_step` and its `record`.

    `record.metrics` is kept up to date. Each line of `metrics.jsonl` is an object with `step`,
    `epoch`, `split` ('train' or 'val'), `loss`, `top1_error`, `top5_error` (fractions),
    `learning_rate`, `images_per_second`; training lines add whatever else the step returns, finite
    scalars such as `gradient_norm` and `parameter_norm`, validation lines that decide on the rate
    `plateau_best` (the lowest error so far), `plateau_count` (evaluations since) and
    `plateau_scale` (the factor of the rate from then on). What an interrupted run wrote after its
    last checkpoint is dropped there and from TensorBoard's files, for its steps are run again.
    TensorBoard's files also hold the fields of the config, and conv1's filters at evaluations.

    Attributes:
      callback: if set, called with each line as a dict, a copy, after it is written.
    """

    callback: Callable[[dict[str, Any]], object] | None = None

    def __init__(
        self,
        workdir: pathlib.Path,
        config: ConfigDict,
        num_train: int,
        start_step: int,
        record: RunRecord,
    ) -> None:
        self._examples = config.batch_size, num_train
        self._log_every_steps = config.log_every_steps
        self._shows_top5 = config.model.num_classes > 5  # with fewer it is always 0
        self._num_steps = total_steps(config, num_train)
        self._so_far = record.metrics
        evaluated = record.validation is not None

        def stays(step: int, split: str) -> bool:
            return step < start_step or step == start_step and (split != "val" or evaluated)

        self._lines, self._events = None, None
        if jax.process_index() == 0:  # of several processes one writes
            self._lines = _continue_lines(workdir / "metrics.jsonl", stays)
            tensorboard.cut(
                workdir / "tensorboard", lambda step, tag: stays(step, tag.split("/")[0])
            )
            self._events = tensorboard.EventsFile(workdir / "tensorboard", start_step + 1)
            fields = dict(flatten(config))
            self._events.hyperparameters(start_step + 1, fields, COMPARED)
        self._shown = time.perf_counter()
        self._progress = Progress(start_step, self._num_steps)
        self._began = time.perf_counter() - record.seconds
        self._pending: tuple[int, Any, int] | None = None
        self._clock: collections.deque[tuple[int, float]] = collections.deque(maxlen=WINDOW)
        self.resume_clock(start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.close()
        if self._lines and self._events:
            self._lines.close()
            self._events.close()

    def seconds(self) -> float:
        """Return the seconds that the run has taken, with those before it was interrupted."""
        return time.perf_counter() - self._began

    def resume_clock(self, step: int) -> None:
        """Restart the measurement of images per second, after something that was not training."""
        self._clock.clear()
        self._clock.append((step, time.perf_counter()))

    def train(self, step: int, metrics: dict[str, Any], skipped_records: int = 0) -> None:
        """Take the metrics of `step`, still on the devices, and write those of the step before.

        So the host waits for a step only after it has sent the next one on its way. All metrics of
        a step that is logged are written, of another only CHECKED come to the host. Where records
        were skipped as damaged, their number so far is written too.
        """
        self.flush()
        names = metrics if self._logged(step) else CHECKED
        self._pending = step, to_host({name: metrics[name] for name in names}), skipped_records

    def flush(self) -> None:
        """Write the metrics that `train` holds back.

        Raises NotFinite where loss, gradient or parameters are not finite any more.
        """
        if self._pending is None:
            return
        (step, metrics, skipped), self._pending = self._pending, None
        values = {name: value.item() for name, value in metrics.items()}
        rate = self._rate(step)
        _refuse_infinite(step, "training", values)
        if self._logged(step):
            counts = {"skipped_records": skipped} if skipped else {}
            self._write(step, "train", values | {"images_per_second": rate} | counts)
            self._progress.show(
                step,
                f"loss {values['loss']:.4f}, top-1 error {values['top1_error']:.1%},"
                f" {rate:.0f} images/s",
            )

    def _logged(self, step: int) -> bool:
        return step % self._log_every_steps == 0 or step in (1, self._num_steps)

    def sync(self) -> None:
        """Write what is held back and wait until all that was written is on the disk."""
        self.flush()
        if self._lines and self._events:
            os.fsync(self._lines.fileno())
            self._events.flush()

    def _rate(self, step: int) -> float:
        """Return images per second over the last WINDOW steps, or since the last pause."""
        (since, start), now = self._clock[0], time.perf_counter()
        self._clock.append((step, now))
        return (step - since) * self._examples[0] / (now - start)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation and print them as a line of their own.

        Raises NotFinite where they are not finite.
        """
        _refuse_infinite(step, "validation", metrics)
        self._write(step, "val", metrics)
        epoch = step * self._examples[0] / self._examples[1]
        top5 = f" top-5 error {metrics['top5_error']:.2%}," if self._shows_top5 else ""
        say(
            f"step {step}, epoch {epoch:.2f}: validation loss {metrics['loss']:.4f},"
            f" top-1 error {metrics['top1_error']:.2%},{top5}"
            f" learning rate {metrics['learning_rate']:g}"
        )

    def filters(self, step: int, params: Any) -> None:
        """Show the filters of conv1 in `params`, which are unreplicated, in TensorBoard."""
        if not self._events or "conv1" not in params:  # local1 has filters for each position
            return
        kernel = np.asarray(params["conv1"]["kernel"])
        if np.isfinite(kernel).all():  # else the save that follows ends the run
            pixels = np.rint(255 * mosaic(kernel)).astype(np.uint8)
            self._events.image(step, "val/conv1", pixels)

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        epoch = step * self._examples[0] / self._examples[1]
        line = {"step": step, "epoch": epoch, "split": split, **values}
        if split == "train":
            self._so_far["train"] = line
        else:
            self._so_far["val"].append(line)
        if self._lines and self._events:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
            self._events.write(step, {f"{split}/{name}": value for name, value in values.items()})
            if time.perf_counter() - self._shown > SHOWN:
                self._events.flush()
                self._shown = time.perf_counter()
        if self.callback is not None:
            self.callback(dict(line))


def _refuse_infinite(step: int, what: str, values: dict[str, float]) -> None:
    if not all(map(math.isfinite, values.values())):
        named = ("loss", "gradient_norm", *(n for n, v in values.items() if not math.isfinite(v)))
        shown = [f"{name} is {values[name]:g}" for name in dict.fromkeys(named) if name in values]
        since = step - 1 if what == "training" else step
        raise NotFinite(f"step {step}, {what}: {', '.join(shown)}", since)


def _continue_lines(path: pathlib.Path, stays: Callable[[int, str], bool]) -> TextIO:
    """Open the JSON lines in `path` for more, after those of which `stays(step, split)` is true.

    A line torn by a crash goes as well.
    """

    def kept(line: str) -> bool:
        try:
            return stays(*(json.loads(line)[name] for name in ("step", "split")))
        except (ValueError, KeyError, TypeError):
            return False

    if path.exists():
        lines = regular(path).read_text(errors="replace").splitlines()
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(line + "\n" for line in filter(kept, lines)))
        scratch.replace(path)
    return path.open("a")
