"""Every notebook of notebooks/ runs on a small run, draws, and uses public names only."""

import ast
import json
import pathlib
import shutil

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import alexnet_jax
from alexnet_jax import data
from configs import cifar10_18pct
from tests import runs
from tests.untrained import save_run, write_lines

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = runs.ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code_cells(name):
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def execute(name, monkeypatch, **parameters):
    """Run the code cells of a notebook in its own folder, as Jupyter does; return its variables.

    `parameters` replace those of its first cell that it has. There is no kernel: one takes 2 s to
    start, and the cells are plain Python.
    """
    drawn = []

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()  # what is wrong in a figure may show only here
            drawn.append(number)
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.syspath_prepend(FOLDER)  # notebooks change sys.path: it is put back
    monkeypatch.chdir(FOLDER)
    variables = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(name)):
        exec(compile("".join(cell["source"]), f"{name}.ipynb {cell['id']}", "exec"), variables)
        if number == 0:
            variables |= {n: str(v) for n, v in parameters.items() if n in variables}
    assert drawn, f"{name} draws no figure"
    assert not plt.get_fignums(), f"{name} leaves a figure that it does not show"
    return variables


def networks():
    """Return the networks that the notebooks are tried on, as configs by name."""
    digits = runs.tiny_config("none")
    stages = digits.model.stages
    found = {name: digits.copy_and_resolve_references() for name in ("two", "tanh", "no_lrn")}
    found["two"].model.groups = 2
    found["tanh"].model.stages = (("tanh", "lrn", "max_pool"), *stages[1:-1], ("tanh", "max_pool"))
    found["no_lrn"].model.stages = tuple(tuple(s for s in of if s != "lrn") for of in stages)
    cifar10 = cifar10_18pct.get_config()  # pooling before ReLU, another norm, no hidden layers
    cifar10.model.features = (8, 8, 8)
    bare = cifar10_18pct.get_config()
    bare.model.layers = ("local1", "conv2", "conv3")
    bare.model.features = (2, 8, 8)
    bare.model.stages = ((), (), ())
    return {"digits": digits, **found, "cifar10": cifar10, "bare": bare}


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Return a folder with one untrained run per network, with metrics of three epochs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in networks().items():
        save_run(folder / name, config)
        write_lines(folder / name, (0.9, 0.6, 0.7))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a folder of images that are neither square nor of equal size, one folder per class."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    for i in range(12):
        picture = Image.fromarray(np.uint8(digits.images[i] * 15)).resize((40 + i, 60))
        path = folder / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return folder


def test_there_are_five_notebooks():
    assert NAMES == ["curves", "filters", "lrn", "neighbours", "predict"]


@pytest.mark.parametrize("name", ["filters", "predict"])
def test_a_notebook_runs_on_a_folder_of_images_and_two_columns(
    name, workdirs, photographs, monkeypatch
):
    found = execute(name, monkeypatch, WORKDIR=workdirs / "two", PICTURES=photographs)
    if name == "filters":
        assert [column.shape for column in found["columns"]] == [(11, 11, 3, 4)] * 2


@pytest.mark.parametrize(
    ("run", "last", "width"),
    [
        ("two", "relu4", 16),
        ("tanh", "tanh4", 16),
        ("cifar10", "avg_pool3", 4 * 4 * 8),
    ],
)
def test_neighbours_takes_the_last_stage_of_any_network(
    run, last, width, workdirs, photographs, monkeypatch
):
    found = execute("neighbours", monkeypatch, WORKDIR=workdirs / run, PICTURES=photographs)
    assert found["last"] == last
    assert found["vectors"].shape == (12, width)


@pytest.mark.parametrize(
    ("run", "first", "least", "normalised"),
    [
        ("tanh", "tanh1", -1, True),
        ("no_lrn", "relu1", 0, False),
        ("cifar10", "relu1", 0, False),
    ],
)
def test_lrn_takes_the_first_activations_of_any_network(
    run, first, least, normalised, workdirs, photographs, monkeypatch, capsys
):
    picture = photographs / "3" / "3.png"
    found = execute("lrn", monkeypatch, WORKDIR=workdirs / run, PICTURE=picture)
    out = capsys.readouterr().out
    assert out.startswith(f"{first}: ")
    assert ("has no local response normalisation" not in out) == normalised
    assert np.ptp(found["x"]) > 0
    assert found["x"].min() == pytest.approx(least, abs=0.1)
    np.testing.assert_allclose(found["y"], found["x"] / found["divisor"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("filters", "local1 of the run in .*bare has other filters at each place"),
        ("lrn", "the run in .*bare has neither ReLU nor tanh"),
        ("neighbours", "the run in .*bare has no stage"),
    ],
)
def test_a_notebook_names_what_a_network_lacks(name, lacks, workdirs, photographs, monkeypatch):
    with pytest.raises(ValueError, match=lacks):
        execute(name, monkeypatch, WORKDIR=workdirs / "bare", PICTURES=photographs)


def test_predict_uses_the_validation_digits(workdirs, digits, monkeypatch, capsys):
    found = execute("predict", monkeypatch, WORKDIR=workdirs / "digits")
    batches = list(data.eval_batches(digits, batch_size=64))
    images, labels = (
        np.concatenate([batch[n][batch["mask"]] for batch in batches]) for n in ("image", "label")
    )
    assert found["labels"] == [digits.class_names[label] for label in labels]
    for i in (0, 100, 358):
        picture = Image.fromarray(found["pictures"][i]).convert("RGB")
        shown = picture.resize(images[i].shape[:2], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(shown, images[i])
    share = np.mean(
        [a[0][0] == label for a, label in zip(found["answers"], found["labels"], strict=True)]
    )
    expected = f"359 pictures: the right class is the first for {share:.1%}"
    assert expected in capsys.readouterr().out


def test_neighbours_uses_the_features_that_predict_uses(workdirs, monkeypatch):
    """The notebook crops as `predict` does, and its neighbours are the nearest images."""
    few = load_digits()
    few.images, few.target = few.images[:200], few.target[:200]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    found = execute("neighbours", monkeypatch, WORKDIR=workdirs / "digits")
    vectors, queries, others = (found[n] for n in ("vectors", "queries", "others"))
    assert vectors.shape == (200, 16)

    some = [*queries[:4], *others[:4]]
    fc5 = found["variables"]["params"]["fc5"]
    probabilities = jax.nn.softmax(vectors[some] @ fc5["kernel"] + fc5["bias"])
    pictures = [np.asarray(found["images"][i]) for i in some]
    expected = alexnet_jax.predict(workdirs / "digits", pictures, top=10)
    for row, answer in zip(probabilities, expected, strict=True):
        by_class = [dict(answer)[str(digit)] for digit in range(10)]
        np.testing.assert_allclose(row, by_class, rtol=1e-4, atol=1e-6)

    for query, six in list(zip(queries, found["nearest"], strict=True))[:5]:
        distances = np.linalg.norm(vectors - vectors[query], axis=1)
        farther = np.setdiff1d(others, six)
        assert len(six) == 6 and query not in six
        assert distances[six].max() <= distances[farther].min() + 1e-4


def test_lrn_shows_the_divisors_of_a_network_of_two_columns(workdirs, photographs, monkeypatch):
    """The windows end between the columns, and every divisor belongs to its output."""
    picture = photographs / "3" / "3.png"
    found = execute("lrn", monkeypatch, WORKDIR=workdirs / "two", PICTURE=picture)
    x, y = found["x"], found["y"]
    np.testing.assert_allclose(y, x / found["divisor"], rtol=1e-4, atol=1e-6)
    halves = [alexnet_jax.local_response_norm(half) for half in np.split(x, 2, axis=-1)]
    np.testing.assert_allclose(y, np.concatenate(halves, axis=-1), rtol=1e-6)
    assert found["remains"].max() <= 1 + 1e-6
    assert np.min(found["remains"]) < 0.9, "nothing to be seen"


def test_curves_compares_runs_and_skips_torn_lines(workdirs, tmp_path, monkeypatch, capsys):
    for name in ("digits", "two"):
        shutil.copytree(workdirs / name, tmp_path / "runs" / name)
    path = tmp_path / "runs" / "digits" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text('{"step": 4, "epo\n[1]\n{"split": "train"}\n' + whole + '{"step": 4, "epo')
    (tmp_path / "runs" / "without a config").mkdir()
    (tmp_path / "runs" / "without a config" / "metrics.jsonl").write_text(whole)
    found = execute("curves", monkeypatch, RUNS=tmp_path / "runs")
    assert "model.groups: 1 (digits), 2 (two)" in capsys.readouterr().out
    drawn = {
        name: [len(run[split]) for split in ("train", "val")] for name, run in found["runs"].items()
    }
    assert drawn == {"digits": [6, 3], "two": [6, 3]}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_public_names_only(name):
    for cell in code_cells(name):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom):
                package = (node.module or "").split(".")[0]
                assert package not in ("configs", "experiments", "tests") and not node.level
                if package == "alexnet_jax":
                    assert node.module == "alexnet_jax"
                    assert {alias.name for alias in node.names} <= set(alexnet_jax.__all__)
            if isinstance(node, ast.Import):
                packages = {alias.name.split(".")[0] for alias in node.names}
                assert not packages & {"alexnet_jax", "configs", "experiments", "tests"}
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_ready_to_open(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)  # 4.5: cells have ids
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(name):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]

    parameters = code_cells(name)[0]
    assert parameters["metadata"]["tags"] == ["parameters"]  # papermill replaces these too
    nodes = ast.parse("".join(parameters["source"])).body
    assert all(isinstance(node, ast.Assign) for node in nodes)
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    for path in values.keys() & {"WORKDIR", "RUNS"}:
        runs_folder = (FOLDER / values[path]).resolve()
        assert runs_folder.is_relative_to(pathlib.Path(runs.ROOT).resolve() / "runs")
