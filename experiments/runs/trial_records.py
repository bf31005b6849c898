"""What is recorded of trials: a result file, a log of errors epoch by epoch, means over seeds."""

import contextlib
import csv
import datetime
import io
import json
import pathlib
import statistics
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files
from alexnet_jax.rundir import versions
from experiments import command_line
from experiments.command_line import field
from experiments.reports import metrics, past_runs
from experiments.runs.trials import SESSIONS, Trial, command, ended, failed, finished

# Fields without an effect on the numbers of a result but rounding: its title leaves them out.
UNSEEN = {
    "accumulate_steps",
    "checkpoint_every_steps",
    "checkpoint_keep",
    "log_every_steps",
    "parallel",
}
EVALUATED = ("loss", "top1_error", "top5_error", "learning_rate")  # of the held-out images
ERRORS = ("top1_error", "top5_error", "ten_crop_top1_error", "ten_crop_top5_error")


def label(name: str, overrides: Iterable[str]) -> str:
    """Return the title of results: `name`, and the overrides that make them other than it says."""
    kept = [o for o in overrides if "--config.dataset." not in o and field(o) not in UNSEEN]
    changes = [o.removeprefix("--config.") for o in kept]
    return "\n".join(textwrap.wrap(" ".join([name, *changes]), 90))


@contextlib.contextmanager
def replaced(out: pathlib.Path, runs: list[dict[str, Any]]) -> Iterator[pathlib.Path]:
    """Yield another OUT, whose files take the place of OUT's when all have been written.

    Raises InputError where OUT.json has runs that have ended, and `runs`, the records of the new
    one, has none: results are not lost to a --workdir or --seeds that were meant otherwise.
    """
    file = extended(out, ".json")
    if not any(map(_ended, runs)) and any(map(_ended, _recorded(file))):
        raise InputError(
            f"{file} holds results, but none of the requested runs has finished; give the --workdir"
            " of the runs, or another --out"
        )
    with whole_files(out.parent) as scratch:
        yield scratch / out.name


def _ended(run: dict[str, Any]) -> bool:
    return run["status"] in ("finished", "there")


def _recorded(file: pathlib.Path) -> list[dict[str, Any]]:
    try:
        runs = json.loads(file.read_text())["runs"]
        return [run for run in runs if "status" in run]
    except (OSError, ValueError, KeyError, TypeError):  # another kind of file, or none
        return []


def write_json(tree: dict[str, Any], out: pathlib.Path) -> None:
    """Write `tree`, with date and code, as OUT.json."""
    stamp = {"date": datetime.date.today().isoformat(), "versions": versions()}
    config_lib.write_json(tree | stamp, extended(out, ".json"))


def write_log(trials: Iterable[Trial], workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Write OUT.csv: a row for each evaluation of each of `trials`, and for each epoch begun.

    Errors are fractions; that of training is the mean over the epoch before.
    """
    with io.StringIO(newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["run", "seed", "step", "epoch", "training_top1_error", *EVALUATED])
        for trial in trials:
            lines = metrics.lines(trial.directory(workdir))
            train = [line for line in lines if line["split"] == "train"]
            evaluated = {line["step"]: line for line in lines if line["split"] == "val"}
            epochs, errors = metrics.training_errors(lines)
            begun = np.flatnonzero(np.diff(np.floor(epochs + 1e-9)) > 0) + 1
            steps = [line["step"] for line in train]
            for step in sorted({*evaluated, *(steps[i] for i in [*begun, -1] if steps)}):
                before = int(np.searchsorted(steps, step, "right"))  # none of rarely logged runs
                line = evaluated.get(step, {})
                epoch = line["epoch"] if line else epochs[before - 1]
                training = f"{errors[before - 1]:.4f}" if before else ""
                numbers = (f"{line[name]:.5g}" if line else "" for name in EVALUATED)
                rows.writerow([trial.name, trial.seed, step, f"{epoch:.5g}", training, *numbers])
        extended(out, ".csv").write_text(text.getvalue())


def extended(out: pathlib.Path, extension: str) -> pathlib.Path:
    """Return OUT with `extension`: of lr0.5 the .5 is none."""
    return out.with_name(out.name + extension)


def records(trials: Iterable[Trial], workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the `record` of each of `trials` that has been begun."""
    return [record(trial, workdir) for trial in trials if trial.directory(workdir).exists()]


def pending(trials: Iterable[Trial], workdir: pathlib.Path) -> list[str]:
    """Return the directory names of those of `trials` that have not ended."""
    return [t.directory(workdir).name for t in trials if not ended(t, workdir)]


def record(trial: Trial, workdir: pathlib.Path) -> dict[str, Any]:
    """Return what is known of `trial`: its differences, its result if it has ended, its sessions.

    `status` is 'finished', 'failed' (with `failure`) or 'unfinished'; `epoch` how far it has come,
    `seconds` in what time, by its latest checkpoint where it has not finished.
    """
    directory = trial.directory(workdir)
    result = finished(trial, workdir)
    failure = None if result else failed(trial, workdir)
    status = "finished" if result else "failed" if failure else "unfinished"
    found: dict[str, Any] = {
        "name": trial.name,
        "seed": trial.seed,
        "differences": trial.differences,
        "status": status,
    }
    if result:
        found |= {name: result[name] for name in (*ERRORS, "step", "epoch", "seconds")}
    else:
        found |= {"failure": _without_places(failure, trial, workdir)} if failure else {}
        found["epoch"] = metrics.epochs(directory) or 0.0
        found["seconds"] = past_runs.seconds(directory)
    return found | {"sessions": _sessions(directory), "command": command(trial)}


def _without_places(failure: str, trial: Trial, workdir: pathlib.Path) -> str:
    """Return `failure` with words in place of paths, which do not belong in a result."""
    dataset = trial.config().dataset
    places = {"DATA": dataset.path, "DATA_DIR": dataset.data_dir, "WORKDIR": str(workdir)}
    for word, place in places.items():
        path = command_line.path(place).absolute()
        for absolute in (str(path), str(path.resolve())) if place else ():
            failure = failure.replace(absolute, word)
    return failure


def _sessions(directory: pathlib.Path) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (directory / SESSIONS).read_text().splitlines():
            with contextlib.suppress(ValueError):  # torn by a kill
                found.append(json.loads(line))
    return found


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1; None of fewer than two) and n of `values`."""
    values = list(values)
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def written(of: dict[str, Any], digits: int = 2, scale: float = 1.0) -> str:
    """Return what `spread` gives, times `scale`, as text, such as '21.48 ± 0.30'; '–' of none."""
    if of["mean"] is None:
        return "–"
    deviation = "" if of["std"] is None else f" ± {scale * of['std']:.{digits}f}"
    return f"{scale * of['mean']:.{digits}f}{deviation}"
