"""Errors on class folders: the numbers, the files, what is refused, what is in memory."""

import csv
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import InputError, command_line, evaluate, restore
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.inspect import confusion, evaluation, image_files
from alexnet_jax.inspect.confusion import confusion_image
from alexnet_jax.prepare import load_image, prepare
from tests import runs
from tests.fuzz_configs import command
from tests.untrained import save_run

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
FILES = ["confusion.png", "evaluation.csv", "evaluation.json", "mistakes.png"]


def draw(path: pathlib.Path, seed: int) -> pathlib.Path:
    """Write an image of one colour and a brighter corner, which random weights tell apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.full((80, 72, 3), rng.integers(0, 256, 3), np.uint8)
    pixels[: rng.integers(80), : rng.integers(72)] = rng.integers(0, 256, 3)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder data set of seven classes, with val/."""
    root = tmp_path_factory.mktemp("evaluation") / "animals"
    for label, name in enumerate(CLASSES):
        draw(root / "train" / name / "0.png", label)
        for i in range(5):
            draw(root / "val" / name / f"{i}.png", 100 * label + i)
    return root


@pytest.fixture(scope="module")
def workdir(data):
    """Return a run of random weights on it."""
    config = runs.tiny_config(data.parent)
    config.dataset.name, config.dataset.path = "folder", str(data)
    config.model.num_classes, config.augment.flip = 7, True
    runs.one_layer(config.model)
    save_run(data.parent / "run", config, CLASSES)
    return data.parent / "run"


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected(workdir: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray:
    """Return the classes in order for each image, by logits of its centre crop, all here."""
    model, variables, config = restore(workdir)
    squares = np.stack([load_image(path, config.dataset.image_size) for path in paths])
    crops = (squares - np.asarray(variables["statistics"]["mean_image"]))[:, 2:69, 2:69]
    logits = np.asarray(model.apply(variables, crops.astype(np.float32)))
    return np.argsort(-logits, 1, kind="stable")


def test_a_folder_is_evaluated_as_its_prepared_set_and_image_by_image(data, workdir, tmp_path):
    out = tmp_path / "out"
    result = evaluate(workdir, data / "val", out=out)
    prepare(restore(workdir).config.dataset)
    stored = evaluate_checkpoint(workdir)
    for name in ("top1_error", "top5_error", "ten_crop_top1_error", "ten_crop_top5_error"):
        assert result[name] == pytest.approx(stored[name], abs=1e-7), name
    assert 0 < result["top5_error"] < result["top1_error"] < 1

    paths = sorted((data / "val").rglob("*.png"))
    labels = np.repeat(np.arange(7), 5)
    order = expected(workdir, paths)
    wrong, beyond = order[:, 0] != labels, (order[:, :5] != labels[:, None]).all(1)
    assert result["count"] == 35
    assert list(result["classes"]) == list(CLASSES)
    for label, name in enumerate(CLASSES):
        mine = labels == label
        found = result["classes"][name]
        assert found["count"] == 5
        assert found["top1_error"] == pytest.approx(wrong[mine].mean())
        assert found["top5_error"] == pytest.approx(beyond[mine].mean())
        counts = np.bincount(order[mine, 0], minlength=7)
        assert result["confusion"][name] == {CLASSES[i]: n for i, n in enumerate(counts) if n}

    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "evaluation.json").read_text()) == result
    written = rows(out / "evaluation.csv")
    assert [row["path"] for row in written] == list(map(str, paths))
    assert [row["label"] for row in written] == [CLASSES[i] for i in labels]
    assert [row["correct"] for row in written] == ["01"[not w] for w in wrong]
    assert [row["class_1"] for row in written] == [CLASSES[i] for i in order[:, 0]]


def test_the_command_needs_no_config_and_leaves_out_what_has_no_class(data, workdir, tmp_path):
    """A run whose classes are not all there, images in subfolders, damaged ones, other files."""
    folder = tmp_path / "new"
    paths = [draw(folder / "cat" / "deep" / f"{i}.png", i) for i in range(3)]
    paths += [draw(folder / "ant" / f"{i}.png", 9 + i) for i in range(2)]
    draw(folder / "top.png", 1)
    (folder / "ant" / "bad.png").write_bytes(paths[0].read_bytes()[:60])
    (folder / "notes").mkdir()
    (folder / "notes" / "read me.txt").touch()
    base = ["--mode=evaluate", f"--workdir={workdir}", f"--images={folder}"]
    code, out, err = command(*base, "--test_crops=false")
    assert code == 0, err
    assert re.fullmatch(r"skipped: \S+/ant/bad.png cannot be decoded [^\n]+\n", err)
    where = workdir / "evaluation"
    result = json.loads((where / "evaluation.json").read_text())
    assert (result["count"], result["undecodable"]) == (5, 1)
    assert (result["not_images"], result["outside_classes"]) == (1, 1)
    assert not any(name.startswith("ten_crop") for name in result)
    assert {name: of["count"] for name, of in result["classes"].items()} == {"ant": 2, "cat": 3}
    top1, top5 = (f"{result[f'top{n}_error']:.2%}" for n in (1, 5))
    assert f"step 0: 5 images of 2 classes, top-1 error {top1}, top-5 {top5};" in out
    assert "skipped 1 files that are not images, 1 undecodable, 1 in no class folder" in out
    assert f"{where} contains evaluation.json" in out
    code, out, _ = command(*base, f"--out={tmp_path / 'out'}")
    assert "(test crops: " in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_predictions_of_class_folders_are_scored(data, workdir, tmp_path):
    draw(tmp_path / "loose" / "ant.png", 1)
    draw(tmp_path / "loose" / "ants" / "1.png", 1)
    arguments = ["--mode=predict", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]
    code, out, err = command(*arguments, f"--images={data / 'val'}", str(tmp_path / "loose"))
    assert code == 0, err
    error = evaluate(workdir, data / "val", test_crops=False)["top1_error"]
    assert f"35 are in folders named after a class: top-1 error {error:.2%}." in out
    written = rows(tmp_path / "out" / "predictions.csv")
    assert [row["label"] for row in written] == [*np.repeat(CLASSES, 5), "", ""]
    assert sum(int(row["correct"]) for row in written[:35]) == round(35 * (1 - error))
    assert [row["correct"] for row in written[35:]] == ["", ""]
    command(*arguments, f"--images={tmp_path / 'loose'}")
    assert "label" not in rows(tmp_path / "out" / "predictions.csv")[0]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (
            ["cats/1.png", "dog/1.png"],
            [],
            "classes that the run does not know: 'cats'; did you mean",
        ),
        (["DOG/1.png"], [], "does not know: 'DOG'; did you mean 'dog'?"),
        (["train/dog/1.png", "val/dog/1.png"], [], "no class folders but train, val: give one"),
        (
            ["1.png"],
            [],
            "no images in class folders; the run's classes are ant, bee, cat, dog, elk",
        ),
        (["dog/1.txt"], [], "no images in class folders"),
        (["dog/1.png"], ["--images={tmp}/none"], "none does not exist: give a folder with"),
        (["dog/1.png"], ["{tmp}/new/dog/1.png"], "1.png is not a folder"),
        (["dog/1.png"], ["--config=configs/quickstart.py"], "leave out --config"),
        (["dog/1.png"], ["--out={tmp}/new/dog/1.png"], "1.png cannot be written"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    names, arguments, message, workdir, tmp_path
):
    for name in names:
        draw(tmp_path / "new" / name, 1) if name.endswith("png") else None
    (tmp_path / "new" / "dog").mkdir(parents=True, exist_ok=True)
    (tmp_path / "new" / "dog" / "1.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    extra = [argument.format(tmp=tmp_path) for argument in arguments]
    out = [] if any("--out" in argument for argument in extra) else [f"--out={tmp_path / 'out'}"]
    base = ["--mode=evaluate", f"--workdir={workdir}", f"--images={tmp_path / 'new'}"]
    code, said, err = command(*base, *out, *extra)
    assert (code, said) == (2, ""), err
    assert message in err
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=evaluate", "--out=x"], "--out=x: --mode=evaluate writes there with --images"),
        (["--mode=predict", "--test_crops=false"], "--test_crops=False goes with --mode=evaluate"),
        (["--mode=evaluate", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message, workdir):
    code, _, err = command(*arguments, f"--workdir={workdir}")
    assert code == 2
    assert message in err


def test_damaged_images_only_leave_no_file(workdir, tmp_path, capsys):
    for i in range(3):
        path = tmp_path / "new" / "dog" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
    with pytest.raises(InputError, match="none of the 3 images can be decoded"):
        evaluate(workdir, tmp_path / "new", out=tmp_path / "out")
    assert capsys.readouterr().err.count("skipped: ") == 3
    assert not (tmp_path / "out").exists()


def test_one_batch_is_in_memory_at_a_time_and_the_worst_mistakes_are_shown(
    workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "SHOWN", 4)
    for i in range(70):
        draw(tmp_path / "new" / CLASSES[i % 2] / f"{i:02}.png", i)
    happened = []

    def read(*arguments):
        happened.append("read")
        return load_image(*arguments)

    def judged(classifier, squares, top, judge=evaluation.Classifier.__call__):
        happened.append(f"judged {len(squares)}")
        return judge(classifier, squares, top)

    def drawn(entries, *texts, draw_sheet=evaluation.contact_sheet):
        shown.extend(entries)
        return draw_sheet(entries, *texts)

    shown = []
    monkeypatch.setattr(evaluation, "contact_sheet", drawn)
    monkeypatch.setattr(image_files, "load_image", read)
    monkeypatch.setattr(evaluation.Classifier, "__call__", judged)
    out = tmp_path / "out"
    result = evaluate(workdir, tmp_path / "new", out=out, test_crops=False)
    assert happened == [
        *["read"] * 32, "judged 32", *["read"] * 32, "judged 32", *["read"] * 6, "judged 6"
    ]  # fmt: skip
    probabilities = [
        float(row["probability_1"]) for row in rows(out / "evaluation.csv") if row["correct"] == "0"
    ]
    assert len(probabilities) == round(70 * result["top1_error"]) > 4
    worst = sorted(probabilities, reverse=True)[:4]
    assert [entry.probability for entry in shown] == pytest.approx(worst, rel=1e-5)
    with Image.open(out / "mistakes.png") as sheet:
        assert sheet.size[1] < 2 * 160 + 100  # one row of the four worst


def test_images_and_labels_are_evaluated_in_python(data, workdir):
    whole = evaluate(workdir, data / "val", test_crops=False)
    paths = sorted((data / "val").rglob("*.png"))
    names = [path.parent.name for path in paths]
    run = restore(workdir)
    found = evaluate(run, paths, names, test_crops=False)
    assert found == {name: whole[name] for name in found}
    arrays = np.stack([load_image(path, 72) for path in paths])
    assert evaluate(run, arrays, [CLASSES.index(n) for n in names], test_crops=False) == found

    for labels, message in (
        (["ant", "bea"], r"labels\[1\]='bea' is not a class; did you mean 'bee'\?"),
        ([0, 7], r"labels\[1\]=7: give names, or 0 to 6"),
        ([0, None], r"labels\[1\]=None: give names, or 0 to 6"),
        ([0], "1 labels and more images"),
        ([0, 1, 2], "3 labels and 2 images"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(run, paths[:2], labels, test_crops=False)
    with pytest.raises(InputError, match="images without labels: give labels=, or a folder"):
        evaluate(run, arrays)
    with pytest.raises(InputError, match="there are no images: give a folder with one folder"):
        evaluate(run, [])


@pytest.fixture
def drawn(monkeypatch):
    """Return the texts that confusion_image draws, in order."""
    texts, fitted = [], confusion.fitted
    monkeypatch.setattr(
        confusion,
        "fitted",
        lambda draw, text, *rest: texts.append(text) or fitted(draw, text, *rest),
    )
    return texts


def test_the_matrix_shows_rows_by_class_and_names_the_most_frequent_confusions(drawn):
    counts = {"ant": {"ant": 9, "cat": 1}, "cat": {"cat": 4, "ant": 4, "dog": 2}}
    image = np.asarray(confusion_image(counts, CLASSES, "title"))
    assert drawn[drawn.index("Most frequent confusions") :] == [
        "Most frequent confusions",
        "cat as ant: 4 of 10",
        "cat as dog: 2 of 10",
        "ant as cat: 1 of 10",
    ]
    assert "other" in drawn  # the column of dog, which has no images
    top = 2 * confusion._GAP + 2 * confusion._LINE + confusion._NAME
    cells = np.array(
        [[image[top + 46 * i + 4, 166 + 46 * j + 4] for j in range(3)] for i in (0, 1)]
    )
    green, red = cells[..., 1] > cells[..., 0], cells[..., 0] > cells[..., 1]
    np.testing.assert_array_equal(green, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(red, [[0, 1, 0], [1, 0, 1]])
    assert cells[0, 0].sum() < cells[1, 1].sum()  # the higher share is the darker
    assert cells[1, 0].sum() < cells[1, 2].sum() < cells[0, 1].sum()


def test_of_many_classes_confusions_and_classes_of_high_error_are_listed_alike(drawn):
    names = [f"class {i}" for i in range(120)]
    counts = {name: {name: 40, **{names[i - j]: j for j in (1, 2)}} for i, name in enumerate(names)}
    confusion_image(counts, names, "title")
    listed = drawn[drawn.index(confusion.HEADINGS[0]) :]
    assert 20 <= listed.index(confusion.HEADINGS[1]) <= len(listed) / 2 + 1


@pytest.mark.parametrize(("number", "side"), [(2, 92), (45, 900), (1000, 2000), (3000, 2000)])
def test_the_matrix_stays_readable_and_bounded(number, side):
    names = [f"class {i}" for i in range(number)]
    counts = {name: {name: 40, names[i - 1]: 10} for i, name in enumerate(names)}
    width, height = confusion_image(counts, names, "title").size
    assert side < width < side + 700
    assert side < height < side + 300


def test_the_help_names_the_flags():
    assert "--test_crops" in command_line._help(command_line._flags(["run.py"]))
