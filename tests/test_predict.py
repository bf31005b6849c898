"""Predictions for files and folders: what is written, what is skipped, what is in memory."""

import csv
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import InputError, command_line, modes, predict
from alexnet_jax.inspect import contact_sheet, image_files, predictions
from alexnet_jax.prepare import load_image
from tests import runs
from tests.untrained import save_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return the directory of a run of random weights."""
    path = tmp_path_factory.mktemp("predict") / "run"
    save_run(path, runs.tiny_config("none"))
    return path


def draw(path: pathlib.Path, seed: int) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def rows(path: pathlib.Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_folder_is_searched_recursively_and_each_image_has_its_row(workdir, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    names = ["a/two.png", "b\r\nc.jpg", 'b "q", ü.png', "z/deep/er/one.PNG"]
    paths = [draw(folder / name, i) for i, name in enumerate(names)]
    (folder / "z" / "loop").symlink_to(folder)
    (folder / "notes.txt").write_text("none")
    draw(folder / ".hidden.png", 9)
    draw(folder / ".hidden" / "x.png", 9)
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    (folder / "nowhere.jpg").symlink_to(tmp_path / "nothing")

    shown = []
    written = predictions.write_predictions(
        workdir, [str(folder)], out, lambda path, answer: shown.append((path, answer))
    )
    assert written[1:] == (4, 4, 3, 2, 0, 0)
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(" cannot")[0] for line in errors] == [
        f"skipped: {folder}/broken.png",
        f"skipped: {folder}/nowhere.jpg does not exist",
    ]

    head, *body = rows(out / "predictions.csv")
    assert head == ["path", *(f"{n}_{i}" for i in range(1, 6) for n in ("class", "probability"))]
    assert [row[0] for row in body] == [str(path) for path in paths] == [path for path, _ in shown]
    expected = predict(workdir, paths)
    assert [answer for _, answer in shown] == expected
    for row, answer in zip(body, expected, strict=True):
        assert row[1::2] == [name for name, _ in answer]
        assert [float(p) for p in row[2::2]] == pytest.approx([p for _, p in answer], rel=1e-5)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.png"]


def test_one_batch_is_in_memory_at_a_time_and_the_sheet_shows_the_first(
    workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr(predictions, "SHOWN", 7)
    folder = tmp_path / "images"
    for i in range(36):
        draw(folder / f"{i:03}.png", i)
    happened = []

    def read(*arguments):
        happened.append("read")
        return load_image(*arguments)

    def judged(classifier, squares, top, judge=predictions.Classifier.__call__):
        happened.append(f"judged {len(squares)}")
        return judge(classifier, squares, top)

    monkeypatch.setattr(image_files, "load_image", read)
    monkeypatch.setattr(predictions.Classifier, "__call__", judged)
    out = tmp_path / "out"
    written = predictions.write_predictions(
        workdir, [str(folder)], out, lambda *_: happened.append("shown")
    )
    assert (written.images, written.shown) == (36, 7)
    batches = ["read"] * 32 + ["judged 32"] + ["read"] * 4 + ["judged 4"]
    assert happened == batches + ["shown"] * 36

    side = contact_sheet.SIDE
    with Image.open(out / "predictions.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert 2 * side < pixels.shape[0] < 3.5 * side  # two rows of six
    assert 6 * side < pixels.shape[1] < 7 * side
    first = contact_sheet.thumbnail(load_image(folder / "000.png", 72))
    views = np.lib.stride_tricks.sliding_window_view(pixels[:side, :side], (1, side // 2), (0, 1))
    row, column = np.argwhere((views == first[0, : side // 2].T[:, None]).all((2, 3, 4)))[0]
    np.testing.assert_array_equal(pixels[row : row + side, column : column + side], first)


def test_the_command_writes_into_the_run_or_out_and_says_where(workdir, tmp_path, capsys):
    folder = tmp_path / "images"
    three = [draw(folder / f"{i}.png", i) for i in range(3)]
    one, other = three[0], draw(tmp_path / "other.png", 3)
    base = ["run.py", "--mode=predict", f"--workdir={workdir}"]

    def lines(*arguments: str) -> list[str]:
        assert command_line.main([*base, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    said = lines(f"--images={folder}", str(other))
    assert [said[0], said[6]] == [str(other), str(one)]
    where = workdir / "predictions"
    assert said[24].startswith("images: 4; skipped 0 files that are not images, 0 undecodable.")
    assert f"{where}/predictions.csv and {where}/predictions.png (all of them)" in said[24]
    paths = [row[0] for row in rows(where / "predictions.csv")[1:]]
    assert paths == list(map(str, [other, *three]))

    files = [f"--images={path}" for path in (other, *three)]
    assert lines(*files) == said[:24]  # for files alone nothing is written
    lines(*files, f"--out={tmp_path}/out")
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["empty"], "empty holds no files with the extension of an image"),
        (["images", "bad.png"], r"bad.png cannot be decoded as an image"),
        (["images", "no.png"], "no.png does not exist"),
        (["broken"], "none of the 1 images can be decoded"),
    ],
)
def test_what_cannot_be_predicted_leaves_nothing_behind(names, message, workdir, tmp_path):
    draw(tmp_path / "images" / "one.png", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "broken").mkdir()
    for bad in (tmp_path / "bad.png", tmp_path / "broken" / "bad.png"):
        bad.write_text("not an image")
    shown = []
    with pytest.raises(InputError, match=message):
        predictions.write_predictions(
            workdir,
            [str(tmp_path / n) for n in names],
            tmp_path / "out",
            lambda *a: shown.append(a),
        )
    assert not shown
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_the_earlier_predictions(workdir, tmp_path, monkeypatch):
    folder, out = tmp_path / "images", tmp_path / "out"
    for i in range(4):
        draw(folder / f"{i}.png", i)
    predictions.write_predictions(workdir, [str(folder)], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(squares):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predictions, "thumbnail", interrupt)
        predictions.write_predictions(workdir, [str(folder)], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # An earlier contact sheet in the folder is not an image to classify.
    for path in folder.iterdir():
        path.rename(out / path.name)
    assert predictions.write_predictions(workdir, [str(out)], out).images == 4
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot be written \(File exists\); make room, or"):
        predictions.write_predictions(workdir, [str(out)], tmp_path / "file")


def test_the_files_are_written_before_an_answer_is_shown(workdir, tmp_path):
    out = tmp_path / "out"
    draw(tmp_path / "images" / "one.png", 1)

    def closed(path, answer):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        predictions.write_predictions(workdir, [str(tmp_path / "images")], out, closed)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.png"]
    assert len(rows(out / "predictions.csv")) == 2


def test_names_neither_control_the_terminal_nor_start_a_formula(tmp_path, monkeypatch, capsys):
    names = ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "\x1b]0;owned\x07", "'quoted", "a=b", "1", "é"]
    save_run(tmp_path / "run", runs.tiny_config("none"), names)
    for name in ("=1+1.png", "-\x1b[2J.png"):
        draw(tmp_path / "images" / name, 1)
    monkeypatch.setattr(predictions, "TOP", 10)
    monkeypatch.chdir(tmp_path / "images")
    files = ["=1+1.png", "-\x1b[2J.png"]
    predictions.write_predictions(tmp_path / "run", files, tmp_path, modes._show)
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b]0;owned\\x07" in shown
    assert "  =1+1" in shown
    head, *body = rows(tmp_path / "predictions.csv")
    assert [row[0] for row in body] == ["'=1+1.png", "'-\x1b[2J.png"]
    for row in body:
        assert set(row[1::2]) == {"'=1+1", "'+1", "'-1", "'@SUM(1)", "'\tx", *names[5:]}
        assert all(0 <= float(p) <= 1 for p in row[2::2])


def test_names_on_the_sheet_are_ascii():
    assert contact_sheet.drawable("Ünïcode 猫 \udcff\n…") == "Unicode ? ??..."
