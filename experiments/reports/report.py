"""Curves, a table and filters of one or many runs, as pictures and one page of HTML.

python experiments/reports/report.py --out=DIR RUN...

Writes DIR/index.html, which holds everything and needs neither network nor scripts, and beside it
its pictures: curves.png, and for each run the filters of its first layer, filters-NUMBER-NAME.png.
A RUN that is the directory of an experiment stands for the runs in it.
"""

import base64
import datetime
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from alexnet_jax.host import whole_files
from experiments import command_line
from experiments.reports.curves import averaged, plot
from experiments.reports.filters import plot_filters
from experiments.reports.past_runs import Run, read
from experiments.reports.report_tables import groups_table, runs_table, text
from experiments.runs import run_directories

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
        _figure(folder / "curves.png", "Loss, top-1 error and learning rate over epochs."),
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
        parts.append(_figure(path, f"Filters of {title}."))
    parts.append(f"<p>Made on {datetime.date.today().isoformat()}.</p>\n")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Training runs</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _figure(path: pathlib.Path, alternative: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{text(alternative)}" src="data:image/png;base64,{data}"></figure>\n'


def report(workdirs: Iterable[pathlib.Path], out: pathlib.Path) -> None:
    """Write the report of the runs in `workdirs` into the directory `out`, whole or not at all.

    A directory that is no run stands for the runs in it.

    Raises InputError where one is no run directory, or `out` cannot be written.
    """
    runs = [read(path, name) for name, path in run_directories.named(workdirs).items()]
    with whole_files(out) as folder:
        (folder / "index.html").write_text(page(runs, folder), encoding="utf-8")


def main() -> int:
    """Write the report that the command line asks for; return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=command_line.path, help="run directories")
    parser.add_argument("--out", required=True, type=command_line.path, help="directory")
    arguments = parser.parse_args()
    report(arguments.runs, arguments.out)
    print(f"open {arguments.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    command_line.main(main)
