"""The report: what the page shows of finished, stopped, failed and damaged runs."""

import base64
import html.parser
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import InputError
from alexnet_jax.rundir.filters import SIDE
from experiments.reports import filters, report
from tests import runs
from tests.untrained import save_run, write_run


class Page(html.parser.HTMLParser):
    """The cells of each table, the images, and every address that the page could load."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs)["alt"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, table: int = 0) -> list[dict[str, str]]:
        """Return the rows of the table with these headings."""
        head, *body = self.tables[table]
        return [dict(zip(head, row, strict=True)) for row in body]


def test_the_page_compares_runs_and_gives_the_spread_over_seeds(tmp_path):
    errors = {0: (0.9, 0.3, 0.4), 1: (0.8, 0.5, 0.5), 2: (0.7, 0.2, 0.1)}
    paths = [write_run(tmp_path / f"s{s}", e, seed=s) for s, e in errors.items()]
    paths.append(write_run(tmp_path / "s2 again", errors[2], seed=2))
    paths.append(write_run(tmp_path / "s3", errors[0][:2], seed=3, ended=False))
    odd = '$x_{<script src="http://a.b/c.js"></script>&'.replace("/", "_")
    paths.append(write_run(tmp_path / odd, (0.9,), **{"model.dropout": 0.25}))
    report.report(paths, tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())

    rows = page.rows()
    assert [row["run"] for row in rows] == ["s0", "s1", "s2", "s2 again", "s3", odd]
    assert [row["seed"] for row in rows] == ["0", "1", "2", "2", "3", "0"]
    assert [row["model.dropout"] for row in rows] == ["0.5"] * 5 + ["0.25"]
    assert not {"learning_rate", "num_epochs", "dataset.data_dir"} & rows[0].keys()
    names = ("epochs", "best top-1", "best top-5", "last top-1", "ten-crop top-1", "time")
    assert [rows[0][n] for n in names] == [
        "3.00 of 4.00",
        "30.00",
        "15.00",
        "40.00",
        "25.00",
        "1:02:03",
    ]
    assert [rows[4][n] for n in names] == ["2.00 of 4.00", "30.00", "15.00", "30.00", "–", "–"]
    assert rows[0]["state"].startswith("finished")

    (group,) = page.rows(1)
    assert [group[n] for n in ("runs", "seeds", "left out", "n")] == [
        "1, 2, 3",
        "0, 1, 2",
        "4, 5",
        "3",
    ]
    assert group["best top-1"] == f"30.00 ± {np.std([30, 50, 10], ddof=1):.2f}"
    assert group["last top-1"] == f"33.33 ± {np.std([40, 50, 10], ddof=1):.2f}"

    assert "script" not in page.tags
    assert page.loaded
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    for source in page.loaded:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curves.png", "index.html"]


def test_unfinished_and_damaged_runs_are_shown_as_such(tmp_path):
    def run(name, errors=(0.5,), **changes):
        return write_run(tmp_path / name, errors, ended=False, **changes)

    torn = run("torn")
    text = (torn / "metrics.jsonl").read_text()
    (torn / "metrics.jsonl").write_text(text + '[1]\n{"step": 9}\n' + text[:50])
    (torn / "result.json").write_text('{"step": 4')
    nothing = run("nothing", ())
    (nothing / "metrics.jsonl").unlink()
    killed = run("killed")
    (killed / "lock").touch()
    diverged = run("diverged")
    line = json.loads(text.splitlines()[0])
    with (diverged / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"step": 20, "epoch": 2.0, "loss": 4e10}) + "\n")
    damaged = run("damaged")
    (damaged / "checkpoints" / "10").mkdir(parents=True)
    report.report([torn, nothing, killed, diverged, damaged], tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    states = {row["run"]: row["state"] for row in page.rows()}
    assert states["torn"] == (
        "failed or killed after epoch 1.00, which was not saved; no checkpoint;"
        " unreadable lines of metrics.jsonl, left out: 3"
    )
    assert states["nothing"] == "no step taken; no checkpoint"
    assert states["killed"] == "running or killed, at epoch 1.00; no checkpoint"
    assert states["diverged"] == "failed at epoch 2.00: the loss was 4e+10; no checkpoint"
    assert states["damaged"] == ("stopped at epoch 1.00; checkpoints/10 cannot be restored")


def test_the_report_shows_the_filters_of_the_best_checkpoint(tmp_path):
    config = runs.tiny_config("none")
    config.model.groups = 2
    save_run(tmp_path / "run", config)
    report.report([tmp_path / "run"], tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert page.rows()[0]["time"] == "0:00:12"
    assert page.images[1] == "Filters of 1 run, step 0."
    with Image.open(tmp_path / "out" / "filters-1-run.png") as image:
        assert image.height > 2 * SIDE  # two columns, one above the other


def test_each_filter_is_scaled_to_its_own_range():
    kernel = np.zeros((11, 11, 3, 18), np.float32)
    kernel[..., 0] = np.linspace(-2, 6, 363).reshape(11, 11, 3)
    kernel[..., 17] = 1e-3 * kernel[..., 0]
    image = filters.mosaic(kernel)
    assert image.shape == (2 * 44 + 4, 16 * 44 + 15 * 4, 3)
    first, last = image[:44:4, :44:4], image[48::4, 48:92:4]
    np.testing.assert_allclose(first, np.linspace(0, 1, 363).reshape(11, 11, 3), atol=1e-6)
    np.testing.assert_allclose(last, first, atol=1e-6)
    np.testing.assert_array_equal(image[:44, 48:92], 0.5)  # equal weights
    np.testing.assert_array_equal(image[44:48], 1)


def test_the_directory_of_an_experiment_stands_for_its_runs(tmp_path):
    first = write_run(tmp_path / "runs" / "quickstart", (0.5,))
    for seed in (1, 0):
        write_run(tmp_path / "runs" / "cifar10" / f"80sec-seed{seed}", (0.5,), seed=seed)
    (tmp_path / "runs" / "cifar10" / "80sec.json").touch()
    report.report([first, tmp_path / "runs" / "cifar10"], tmp_path / "out")
    rows = Page((tmp_path / "out" / "index.html").read_text()).rows()
    assert [row["run"] for row in rows] == ["quickstart", "80sec-seed0", "80sec-seed1"]


def test_a_directory_that_is_not_a_run_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    run, other = write_run(tmp_path / "run", (0.5,)), tmp_path / "other"
    other.mkdir()
    refused = f"{other}/config.json is missing: {other} is not a run directory"
    with pytest.raises(InputError) as error:
        report.report([run, other], tmp_path / "out")
    assert str(error.value) == refused
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"/file cannot be written \(File exists\)"):
        report.report([run], tmp_path / "file")
    with pytest.raises(InputError, match="/file is a file; give directories of runs"):
        report.report([run, tmp_path / "file"], tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["report.py", f"--out={tmp_path}/out", str(run)])
    assert report.main() == 0
    assert capsys.readouterr().out == f"open {tmp_path}/out/index.html\n"
