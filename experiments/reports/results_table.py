"""The table in docs/results.md: every number of it comes from a file in experiments/results.

    python experiments/reports/results_table.py          # prints the table
    python experiments/reports/results_table.py --write  # writes it into docs/results.md

A row is one of ROWS: a recipe, what it was trained on, and where its runs are recorded.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from alexnet_jax.errors import InputError
from experiments import command_line
from experiments.runs import trial_records

RESULTS = "experiments/results"
PAGE = "docs/results.md"
EPOCHS = "epochs_to_target"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
HEAD = (
    "| recipe | data | top-1 error (%) | published | epochs | time of a run | device | seeds | log"
    " | what it means |"
)


class Row(NamedTuple):
    """A row: configs/`recipe`.py on `data`, the runs called `name` in RESULTS/FILE.json.

    `files` are the FILEs, separated by spaces: seeds may have been recorded apart. `metric` is an
    error of the runs, or EPOCHS to figure 1's training error; `means` is a sentence. A row without
    a file yet is left out.
    """

    recipe: str
    data: str
    files: str
    name: str
    published: str = ""
    metric: str = "top1_error"
    means: str = ""


CROPS = "ten_crop_top1_error"
WOOF = "6,340 photographs of ten dog breeds (imagewoof160), ten crops"
SMALL = "2,500 Imagenette images at 64 px, a narrow net, 30 epochs, ten crops"
FEW = "100 Imagenette images per class at 72 px, a narrow net"
FIGURE1 = "figure1 figure1_seed1 figure1_seed2"
REACHED = "As published."
CODE = "alexnet_2012_code"
ROWS = (
    Row("cifar10_80sec", "CIFAR-10", "cifar10_80sec", "80sec", "26, after fewer epochs",
        means="Below the published error, with more epochs than the author's \"few\"."),
    Row("cifar10_18pct", "CIFAR-10", "cifar10_18pct cifar10_18pct_seed1 cifar10_18pct_seed2",
        "18pct", "18", means=REACHED),
    Row("cifar10_13pct", "CIFAR-10, nine crops, cut short: 379 of 520 epochs, the last 20 on a CPU",
        "cifar10_13pct", "13pct", "13", CROPS, "Below the published error, in fewer epochs."),
    Row("cifar10_11pct", "CIFAR-10, nine crops", "cifar10_11pct", "11pct", "11", CROPS),
    Row("figure1", "CIFAR-10, ReLU", FIGURE1, "relu-lr0.003", "6 epochs", EPOCHS, REACHED),
    Row("figure1", "CIFAR-10, tanh", FIGURE1, "tanh-lr0.01", "36 epochs", EPOCHS,
        "6.5 ± 0.3 times ReLU's epochs; the paper says six."),
    Row("figure1", "CIFAR-10, ReLU, He's weights", "figure1_he", "relu-lr0.01", "", EPOCHS,
        "Today's weights do not help ReLU here."),
    Row("figure1", "CIFAR-10, tanh, He's weights", "figure1_he", "tanh-lr0.03", "", EPOCHS,
        "With today's weights tanh takes 1.2 times ReLU's epochs. Figure 1 depends on the initial"
        " weights of its time."),
    Row("alexnet_cifar10", "CIFAR-10, cut short: 4 epochs", "first_runs", "cifar10",
        means="It learns. No published error exists for this net."),
    Row("alexnet", WOOF, "recipes_imagewoof", "published", "", CROPS),
    Row(CODE, WOOF, "recipes_imagewoof", "released_code", "", CROPS),
    Row("alexnet", f"{WOOF}, He's weights and today's dropout", "recipes_imagewoof", "today", "",
        CROPS),
    Row("alexnet", WOOF, "ablations_imagewoof", "full", "", CROPS),
    Row("alexnet", f"{WOOF}, in bfloat16", "ablations_imagewoof", "bfloat16", "", CROPS),
    Row("alexnet", f"2,500 Imagenette images, with [overrides](../{RESULTS}/README.md), cut short:"
        " 8 epochs", "first_runs", "imagenette-227px",
        means="It learns. The run is too short to compare."),
    Row("alexnet", f"the same images, other [overrides](../{RESULTS}/README.md), cut short:"
        " 4 epochs", "imagenette_ablations", "full",
        means="Too short to show what a part is worth."),
    Row("alexnet_cifar10", SMALL, "small_ablations", "full", "", CROPS,
        "The reference for the rows below. No difference from it is three standard errors or"
        " more."),
    Row("alexnet_cifar10", f"{SMALL}, without LRN", "small_ablations", "no_lrn",
        "1.4 points more", CROPS,
        "One of three seeds stays at chance: LRN helps training to start."),
    Row("alexnet_cifar10", f"{SMALL}, pools that do not overlap", "small_ablations", "no_overlap",
        "0.4 points more", CROPS, "0.0 ± 3.5 points more."),
    Row("alexnet_cifar10", f"{SMALL}, without colour", "small_ablations", "no_colour",
        "more than 1 point more", CROPS, "1.7 ± 3.1 points more."),
    Row("alexnet_cifar10", f"{SMALL}, without crops and reflections", "small_ablations",
        "no_crops_flips", "overfits", CROPS, "5.2 ± 3.1 points more."),
    Row("alexnet_cifar10", f"{SMALL}, without dropout", "small_ablations", "no_dropout",
        "overfits", CROPS, "9.9 ± 3.8 points less: trained too briefly to overfit."),
    Row("alexnet_cifar10", f"{SMALL}, two columns", "small_ablations", "two_columns", "", CROPS,
        "The reference for the next row."),
    Row("alexnet_cifar10", f"{SMALL}, half the width", "small_ablations", "half_width",
        "1.7 points more", CROPS, "6.1 ± 3.1 points more than two columns."),
    Row("alexnet_cifar10", f"{SMALL}, without conv3", "small_ablations", "without_conv3",
        "about 2 points more", CROPS,
        "2.5 ± 3.6 points more. Without conv4 or conv5 the net would be the same."),
    Row("quickstart", "digits", "bfloat16_digits", "full",
        means="The error to expect from a fresh checkout."),
    Row("quickstart", "digits, in bfloat16", "bfloat16_digits", "bfloat16",
        means="No visible difference: 0.3 points more, with a standard error of 0.25."),
    Row("folder", FEW, "finetune", "scratch", means="The baseline for fine-tuning."),
    Row("finetune", f"{FEW}, from a net trained on 6,340 photographs of dogs", "finetune",
        "finetune", means="4.2 points less than from scratch with the same number of steps."),
    Row("finetune", f"{FEW}, from the same net, only the last layer trained", "finetune", "probe",
        means="The features of a net this weak are not enough to classify other classes."),
)  # fmt: skip


def recorded(row: Row, results: pathlib.Path) -> list[str]:
    """Return those files of `row` that are there."""
    return [file for file in row.files.split() if (results / f"{file}.json").exists()]


def runs(name: str, file: pathlib.Path) -> list[dict[str, Any]]:
    """Return errors, epochs, seconds and devices of each run called `name`, as `file` has them."""
    record = json.loads(file.read_text())
    if isinstance(record["runs"], dict):  # of curves.py
        run = record["runs"][name]
        return [run["result"] | {"devices": {run["result"].get("device", "not recorded")}}]
    return [
        run | {"devices": {session["device"] for session in run["sessions"]}}
        for run in record["runs"]
        if run["name"] == name
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def line(row: Row, results: pathlib.Path) -> str:
    """Return the row's line of the table."""
    files = recorded(row, results)
    begun = [run for file in files for run in runs(row.name, results / f"{file}.json")]
    found = [run for run in begun if run.get(row.metric) is not None]
    if row.metric == EPOCHS:
        error = "25 in training"
        epochs = trial_records.written(trial_records.spread(run[EPOCHS] for run in found), 1)
    else:
        error = trial_records.written(
            trial_records.spread(run[row.metric] for run in found), scale=100
        )
        epochs = f"{statistics.fmean(run['epoch'] for run in found):.0f}"
    seconds = [run["seconds"] for run in found if run.get("seconds") is not None]
    time = _time(statistics.median(seconds)) if seconds else "not recorded"
    cells = [
        f"[{row.recipe}](../configs/{row.recipe}.py)",
        row.data,
        error,
        row.published,
        epochs,
        time,
        "; ".join(sorted(set().union(*(run["devices"] for run in found)))),
        str(len(found)) if len(found) == len(begun) else f"{len(found)} of {len(begun)}",
        "; ".join(_links(file, results) for file in files),
        row.means,
    ]
    return "| " + " | ".join(cells) + " |"


def _links(file: str, results: pathlib.Path) -> str:
    if (results / f"{file}.csv").exists():
        links = {"log": ".csv", "file": ".json", "plot": ".png"}
    else:
        links = {"log": ".json", "plot": ".png"}
    return ", ".join(f"[{name}](../{RESULTS}/{file}{end})" for name, end in links.items())


def table(results: pathlib.Path, rows: Sequence[Row] = ROWS) -> str:
    """Return the table as Markdown, of those `rows` that are recorded."""
    rule = "|" + "---|" * (HEAD.count("|") - 1)
    return (
        "\n".join([HEAD, rule, *(line(row, results) for row in rows if recorded(row, results))])
        + "\n"
    )


def main() -> int:
    """Print the table, or write it into docs/results.md; return the exit code."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/results.md")
    text = table(ROOT / RESULTS)
    if not parser.parse_args().write:
        print(text, end="")
        return 0
    path = ROOT / PAGE
    page = path.read_text()
    if [page.count(mark) for mark in (BEGIN, END)] != [1, 1]:
        raise InputError(f"{PAGE} needs one line {BEGIN.strip()} and one {END.strip()} after it")
    before, _, rest = page.partition(BEGIN)
    path.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    command_line.main(main)
