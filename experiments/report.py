"""Curves, a table and filters of one or many runs, as pictures and one page of HTML.

python experiments/report.py --out=DIR RUN...

Writes DIR/index.html, which holds everything and needs neither network nor scripts, and beside it
its pictures: curves.png, and for each run the filters of its first layer, filters-NUMBER-NAME.png.
A RUN that is the directory of an experiment stands for the runs in it.
"""

import argparse
import base64
import datetime
import html
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alexnet_jax.errors import InputError
from experiments.curves import averaged, plot
from experiments.filters import plot_filters
from experiments.past_runs import Run, read

COLUMNS = 6  # with more fields that differ, they have a table of their own
APART = ("seed", "dataset.data_dir")  # in which the runs of a group may differ
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #111; margin: 2em auto; max-width: 1180px;
  padding: 0 1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .7em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .6em; border-bottom: 1px solid #ccc; text-align: left;
  vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #555; }
td.number, th.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; }
figure { margin: 1em 0; }
"""


# --- tables -------------------------------------------------------------------------------------


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


ERRORS = (
    "best top-1",
    "best top-5",
    "last top-1",
    "last top-5",
    "ten-crop top-1",
    "ten-crop top-5",
)


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
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))


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
            spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
            row.append(_Number(f"{statistics.mean(known):.2f}{spread}" if known else "–"))
        rows.append(row)
    if not rows:
        return ""
    heads = ["runs", "seeds", "left out", "n", *ERRORS]
    return (
        "<h2>Over seeds</h2>\n<p>Runs of the same config but for the seed: mean ± standard"
        " deviation (of a sample, n − 1) of the errors in %. Left out: runs that are not finished,"
        " and those of a seed that is there already.</p>\n" + table(heads, rows)
    )


# --- the page -----------------------------------------------------------------------------------


def page(runs: Sequence[Run], folder: pathlib.Path) -> str:
    """Draw the pictures into `folder` and return the page that holds them."""
    named = {f"{i} {run.name}": run for i, run in enumerate(runs, start=1)}
    plot(
        {
            name: {
                "config": {"model": {"num_classes": run.fields["model.num_classes"]}},
                "curves": averaged(run.lines),
            }
            for name, run in named.items()
        },
        folder / "curves.png",
    )
    parts = [
        "<h1>Training runs</h1>\n<h2>Runs</h2>\n",
        "<p>Errors on the validation set, centre crop unless said otherwise, in %. Best: of the"
        " evaluation with the lowest top-1 error, which is chosen on the same pictures and so"
        " flatters. Ten-crop: of the last step of a finished run.</p>\n",
        runs_table(runs),
        groups_table(runs),
        "<h2>Curves</h2>\n",
        _figure(folder / "curves.png", "Loss, top-1 error and learning rate over epochs.", ""),
        "<h2>Filters of the first layer</h2>\n<p>Of the best checkpoint. Each filter is scaled to"
        " its own smallest and largest weight; with two columns, the first one's are above.</p>\n",
    ]
    for i, (name, run) in enumerate(named.items(), start=1):
        if run.saved.kernel is None:
            parts.append(f"<p>{text(name)}: none to show.</p>\n")
            continue
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", run.name).strip("-.")[:60]
        path = folder / f"filters-{i}-{slug}.png"
        title = f"{name}, step {run.saved.best}"
        plot_filters(run.saved.kernel, run.fields["model.groups"], title, path)
        parts.append(_figure(path, f"Filters of {title}.", title))
    parts.append(f"<p>Made on {datetime.date.today().isoformat()}.</p>\n")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Training runs</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _figure(path: pathlib.Path, alternative: str, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    picture = f'<img alt="{text(alternative)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}{below}</figure>\n"


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Return as much of the end of each path as tells it from the others."""
    for length in range(1, max(len(path.parts) for path in workdirs) + 1):
        ends = ["/".join(path.parts[-length:]) for path in workdirs]
        if len(set(ends)) == len(ends):
            break
    return ends


def run_directories(path: pathlib.Path) -> list[pathlib.Path]:
    """Return `path`; where it is no run but holds some, as that of an experiment, these."""
    if (path / "config.json").exists():
        return [path]
    return sorted(file.parent for file in path.glob("*/config.json")) or [path]


def report(workdirs: Iterable[pathlib.Path], out: pathlib.Path) -> None:
    """Write the report of the runs in `workdirs` into the directory `out`, whole or not at all.

    A directory that is no run stands for the runs in it.

    Raises InputError where one is no run directory, or `out` cannot be written.
    """
    given = (path.expanduser().resolve() for path in workdirs)
    workdirs = list(dict.fromkeys(run for path in given for run in run_directories(path)))
    runs = [read(path, name) for path, name in zip(workdirs, names(workdirs), strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as scratch:
            folder = pathlib.Path(scratch)
            (folder / "index.html").write_text(page(runs, folder), encoding="utf-8")
            for file in folder.iterdir():
                file.replace(out / file.name)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written ({error.strerror})") from error


def main() -> int:
    """Write the report that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory of the report")
    arguments = parser.parse_args()
    try:
        report(arguments.runs, arguments.out)
    except (InputError, OSError) as error:
        print(f"error: {InputError(str(error))}", file=sys.stderr)
        return 2
    print(f"open {arguments.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
