"""Reading metrics.jsonl, and drawing the curves of runs."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import InputError
from experiments import command_line
from experiments.reports import curves, metrics, report
from tests.untrained import write_run

TORN = (
    '{"step": 3, "epo',
    "[1]",
    '{"step": 9, "split": "val"}',
    '{"step": 9}',
    '{"step": 1, "epoch": 1.0, "split": "test", "loss": 1.0, "top1_error": 0.5}',
    '{"epoch": 9.0, "split": "train", "top1_error": NaN}',
    '{"epoch": true, "split": "train", "top1_error": 0.5}',
    '{"epoch": "9", "split": "train", "top1_error": 0.5}',
    '{"epoch": 1' + 400 * "0" + ', "split": "train", "top1_error": 0.5}',
    "[" * 100_000,
    "",
    "\udcff\udcfe\x00",
)


def test_torn_lines_are_skipped_and_counted(tmp_path):
    run = write_run(tmp_path / "run", (0.5, 0.25))
    whole = metrics.lines(run)
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    mixed = [text for pair in zip(TORN[::2], lines, TORN[1::2], strict=True) for text in pair]
    path.write_text("\n".join(mixed), errors="surrogateescape")
    columns, torn = metrics.read(run)
    assert torn == len(TORN)
    assert metrics.lines(run) == whole == [json.loads(line) for line in lines]
    assert metrics.epochs(run) == 2.0
    for split, found in columns.items():
        of_split = [line for line in whole if line["split"] == split]
        assert found.keys() == set(metrics.COLUMNS)
        for name, values in found.items():
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, [line[name] for line in of_split])


def test_a_run_without_lines_has_none(tmp_path):
    columns, torn = metrics.read(tmp_path)
    assert [len(columns[split]["loss"]) for split in ("train", "val")] == [0, 0]
    assert torn == 0 and metrics.lines(tmp_path) == [] and metrics.epochs(tmp_path) is None


def test_the_epochs_done_are_read_from_the_end_of_a_long_file(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", (0.5,) * 50)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 505, "epoch": 50.5, "spl')
    monkeypatch.setattr(metrics, "TAIL", 1000)
    assert metrics.epochs(run) == 50.0


def test_runs_of_the_same_name_get_different_labels_and_a_dot_in_out_stays(tmp_path):
    one, two = (write_run(tmp_path / name / "run", (e,)) for name, e in (("a", 0.5), ("b", 0.4)))
    (two / "result.json").write_text('{"step": 4')  # damaged
    for name in ("lr0.5", "lr0.05"):
        curves.write([one, two, tmp_path / "a"], tmp_path / "new" / name)
    written = {f"lr0.{end}" for end in ("5.json", "5.png", "05.json", "05.png")}
    assert {path.name for path in (tmp_path / "new").iterdir()} == written
    record = json.loads((tmp_path / "new" / "lr0.5.json").read_text())["runs"]
    errors = {name: run["curves"]["val"]["top1_error"] for name, run in record.items()}
    assert errors == {"a/run": [0.5], "b/run": [0.4]}
    assert record["a/run"]["result"]["seconds"] == 3723.4 and record["b/run"]["result"] is None
    Image.open(tmp_path / "new" / "lr0.5.png").verify()


@pytest.mark.parametrize("script", [curves, report])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "missing/config.json is missing: {0}/missing is not a run directory"),
        ("other", "other/config.json is missing: {0}/other is not a run directory"),
        ("torn", "torn/config.json is damaged"),
        ("list", "list/config.json is damaged"),
    ],
)
def test_a_directory_that_is_not_a_run_gives_one_line_and_exit_code_2(
    script, name, said, tmp_path, monkeypatch, capsys
):
    run = write_run(tmp_path / "run", (0.5,))
    (tmp_path / "other").mkdir()
    for damaged, text in (("torn", '{"seed": 0, "mod'), ("list", "[1]")):
        (tmp_path / damaged).mkdir()
        (tmp_path / damaged / "config.json").write_text(text)
    there = sorted(tmp_path.rglob("*"))
    arguments = ["script.py", f"--out={tmp_path}/out/new", str(run), str(tmp_path / name)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(command_line, "as_interrupts", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main(script.main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/{said.format(tmp_path)}")
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("out", [".", "..", "file/curves"])
def test_an_out_that_cannot_be_written_is_refused(out, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", (0.5,))
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--out=|^file cannot be written \(File exists\)"):
        curves.write([run], pathlib.Path(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]
