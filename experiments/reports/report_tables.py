"""The tables of a report: a row a run with what it differs in, and the spread over seeds."""

import datetime
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from alexnet_jax.errors import printable
from experiments.reports.past_runs import Run
from experiments.runs.trial_records import spread, written

COLUMNS = 6  # with more fields that differ, they have a table of their own
APART = ("seed", "dataset.data_dir")  # in which the runs of a group may differ
ERRORS = (
    "best top-1",
    "best top-5",
    "last top-1",
    "last top-5",
    "ten-crop top-1",
    "ten-crop top-5",
)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the names of the config fields in which the runs differ, without the seed."""
    return [
        n
        for n in runs[0].fields
        if n not in APART and len({repr(run.fields[n]) for run in runs}) > 1
    ]


def groups(runs: Sequence[Run]) -> list[list[int]]:
    """Return the indices of runs of the same config but the seed, where there are several."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        same = sorted((n, repr(v)) for n, v in run.fields.items() if n not in APART)
        found.setdefault(repr(same), []).append(i)
    return [members for members in found.values() if len(members) > 1]


def validation(run: Run) -> dict[str, float]:
    """Return the errors, as fractions, that `run` has, by the headings of the table."""
    val = run.lines["val"]
    errors: dict[str, float] = {}
    if len(val["step"]):
        for which, i in (("best", int(val["top1_error"].argmin())), ("last", -1)):
            errors |= {f"{which} top-{k}": float(val[f"top{k}_error"][i]) for k in (1, 5)}
    if run.result:
        errors["ten-crop top-1"] = run.result["ten_crop_top1_error"]
        errors["ten-crop top-5"] = run.result["ten_crop_top5_error"]
    return errors


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return rows of text, and of numbers (`_Number`), as HTML, escaped."""
    rows = [list(row) for row in rows]
    numeric = [
        any(isinstance(cell, _Number) for cell in column) for column in zip(*rows, strict=True)
    ]

    def cells(tag: str, row: Iterable[Any]) -> str:
        classes = (' class="number"' if number else "" for number in numeric)
        return "".join(
            f"<{tag}{kind}>{text(cell)}</{tag}>" for cell, kind in zip(row, classes, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{cells("th", heads)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


class _Number(str):
    """A cell that is aligned on the right."""


def text(value: Any) -> str:
    """Return `value` as HTML; what does not print, as in a file's name, is escaped as well."""
    return html.escape(printable(str(value)))


def _percent(fraction: float | None) -> _Number:
    return _Number("–" if fraction is None else f"{100 * fraction:.2f}")


def _value(run: Run, name: str) -> str:
    value = run.fields[name]
    if name == "dataset.path":  # where the pictures lay is nobody else's business
        return pathlib.PurePath(value).name
    return "–" if value is None else str(value)


def runs_table(runs: Sequence[Run]) -> str:
    """Return the table with a row a run, and where many fields differ one of these."""
    fields = differing(runs)
    columns = fields if len(fields) <= COLUMNS else []
    commits = len({run.saved.commit for run in runs}) > 1
    rows = []
    for i, run in enumerate(runs, start=1):
        errors = validation(run)
        row: list[Any] = [_Number(i), run.name, *(_value(run, name) for name in columns)]
        row += [_Number(run.fields["seed"]), _epochs(run)]
        row += [_percent(errors.get(name)) for name in ERRORS]
        row += [_time(run), run.state]
        rows.append(row + ([_commit(run)] if commits else []))
    heads = ["", "run", *columns, "seed", "epochs", *ERRORS, "time", "state"]
    page = table(heads + (["code"] if commits else []), rows)
    if fields and not columns:
        page += "<h3>Fields in which they differ</h3>\n" + table(
            ["field", *(str(i) for i in range(1, len(runs) + 1))],
            ([name, *(_value(run, name) for run in runs)] for name in fields),
        )
    return page


def _epochs(run: Run) -> _Number:
    """Return the epochs done, of those that the config asks for."""
    planned, num_steps = run.fields["num_epochs"], run.fields["num_steps"]
    steps, epochs = (run.lines["train"][name] for name in ("step", "epoch"))
    if not len(steps):
        return _Number("0" if num_steps else f"0 of {planned}")
    if num_steps:
        planned = num_steps * epochs[-1] / max(1, steps[-1])
    return _Number(f"{epochs[-1]:.2f} of {planned:.2f}")


def _time(run: Run) -> _Number:
    """Return what the run has taken, until its last save if it has not ended."""
    seconds = run.result["seconds"] if run.result else run.saved.seconds
    return _Number("–" if seconds is None else datetime.timedelta(seconds=round(seconds)))


def _commit(run: Run) -> str:
    commit, _, dirty = run.saved.commit.partition("-")
    return commit[:8] + ("-dirty" if dirty else "") or "–"


def groups_table(runs: Sequence[Run]) -> str:
    """Return mean and standard deviation over the seeds of each group; '' if there is no group."""
    rows = []
    for members in groups(runs):
        of_seed = {runs[i].fields["seed"]: i for i in reversed(members) if runs[i].result}
        ended = sorted(of_seed.values())  # the same seed again would be the same run again
        numbers = ", ".join(str(i + 1) for i in ended) or "none"
        left_out = ", ".join(str(i + 1) for i in members if i not in ended) or "none"
        seeds = ", ".join(str(runs[i].fields["seed"]) for i in ended)
        row: list[Any] = [numbers, seeds, left_out, _Number(len(ended))]
        for name in ERRORS:
            errors = [validation(runs[i]).get(name) for i in ended]
            known = [100 * error for error in errors if error is not None]
            row.append(_Number(written(spread(known))))
        rows.append(row)
    if not rows:
        return ""
    heads = ["runs", "seeds", "left out", "n", *ERRORS]
    return (
        "<h2>Over seeds</h2>\n<p>Runs of the same config but for the seed: mean ± standard"
        " deviation (of a sample, n − 1) of the errors in %. Left out: runs that are not finished,"
        " and those of a seed that is there already.</p>\n" + table(heads, rows)
    )
