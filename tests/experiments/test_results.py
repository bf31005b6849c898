"""The table of docs/results.md against the recorded files."""

import json
import pathlib
import re
import statistics

from experiments.reports import results_table

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments/results"
PAGE = (ROOT / results_table.PAGE).read_text()


def test_the_table_is_that_of_the_files():
    """If it does not, run `python experiments/reports/results_table.py --write`."""
    shown = PAGE.partition(results_table.BEGIN)[2].partition(results_table.END)[0]
    assert shown == results_table.table(RESULTS)


def test_a_line_shows_mean_and_deviation_of_the_finished_runs_of_all_files(tmp_path):
    errors = (0.25, 0.26, 0.30)
    runs = [
        {"name": "net", "seed": seed, "status": "finished", "top1_error": error, "epoch": 24.0,
         "seconds": 60.0 * seed, "sessions": [{"device": "a"}, {"device": "b"}]}
        for seed, error in enumerate(errors)
    ]  # fmt: skip
    runs.append({"name": "net", "seed": 3, "status": "unfinished", "epoch": 2.0, "sessions": []})
    for file, recorded in {"file": runs[:2], "apart": runs[2:]}.items():
        (tmp_path / f"{file}.json").write_text(json.dumps({"runs": recorded}))
    row = results_table.Row("alexnet", "data", "file apart not_yet", "net", "26")
    line = results_table.line(row, tmp_path)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2] == f"27.00 ± {100 * statistics.stdev(errors):.2f}"
    assert cells[3:8] == ["26", "24", "60 s", "a; b", "3 of 4"]


def test_a_line_of_figure_1_shows_the_epochs_to_its_training_error(tmp_path):
    runs = [
        {"name": "tanh", "seed": seed, "status": status, "epochs_to_target": epochs, "epoch": 9.0,
         "seconds": 100.0 * (seed + 1), "sessions": [{"device": "a"}]}
        for seed, (status, epochs) in enumerate([("there", 7.0), ("there", 8.0), ("failed", None)])
    ]  # fmt: skip
    (tmp_path / "file.json").write_text(json.dumps({"runs": runs}))
    row = results_table.Row("figure1", "data", "file", "tanh", "36", results_table.EPOCHS)
    cells = [cell.strip() for cell in results_table.line(row, tmp_path).strip("|").split("|")]
    assert cells[2:8] == ["25 in training", "36", "7.5 ± 0.7", "2 min", "a", "2 of 3"]


def test_every_file_that_readmes_and_docs_name_exists():
    pages = [ROOT / "README.md", RESULTS / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
