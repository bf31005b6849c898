"""Every notebook of notebooks/ runs on a small run, draws, and uses public names alone."""

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
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax.train import train_and_evaluate
from tests import runs

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


@pytest.fixture(scope="module")
def workdirs(data_dir, tmp_path_factory):
    """Folder of two runs of three steps, 'one' and 'two' by the number of their columns.

    Where all layers read both columns the arrays are those of one, so that one training is enough.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = runs.tiny_config(data_dir)
    config.num_steps = 3
    train_and_evaluate(config, folder / "one")

    shutil.copytree(folder / "one", folder / "two", ignore=shutil.ignore_patterns("checkpoints"))
    config, state, run = checkpoint.load(folder / "one")
    config.model.groups = 2
    config.model.cross_layers = config.model.layers[1:]
    config_lib.save(config, folder / "two" / "config.json")
    with checkpoint.Checkpoints(folder / "two") as checkpoints:
        checkpoints.save(3, state, run | {"config": config.to_dict()})
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Folder of pictures that are neither square nor of one size, in a folder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    for i in range(12):
        picture = Image.fromarray(np.uint8(digits.images[i] * 15)).resize((40 + i, 60))
        path = folder / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return folder


def test_there_are_five():
    assert NAMES == ["curves", "filters", "lrn", "neighbours", "predict"]


@pytest.mark.parametrize("name", ["filters", "neighbours", "predict"])
def test_a_notebook_runs_on_pictures_and_two_columns(name, workdirs, photographs, monkeypatch):
    found = execute(name, monkeypatch, WORKDIR=workdirs / "two", PICTURES=photographs)
    if name == "filters":
        assert [column.shape for column in found["columns"]] == [(11, 11, 3, 4)] * 2


def test_predict_asks_the_digits_that_were_held_out(workdirs, monkeypatch, capsys):
    execute("predict", monkeypatch, WORKDIR=workdirs / "one")
    error = runs.metrics(workdirs / "one", "val")[-1]["top1_error"]
    expected = f"359 pictures: the right class is the first for {1 - error:.1%}"
    assert expected in capsys.readouterr().out


def test_neighbours_are_those_of_the_vectors_by_which_predict_judges(workdirs, monkeypatch):
    """The crops, which the notebook makes itself, are those of `predict`; the nearest are such."""
    few = load_digits()
    few.images, few.target = few.images[:200], few.target[:200]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)
    found = execute("neighbours", monkeypatch, WORKDIR=workdirs / "one")
    vectors, queries, others = (found[n] for n in ("vectors", "queries", "others"))
    assert vectors.shape == (200, 16)

    some = [*queries[:4], *others[:4]]
    fc8 = found["variables"]["params"]["fc8"]
    probabilities = jax.nn.softmax(vectors[some] @ fc8["kernel"] + fc8["bias"])
    pictures = [np.asarray(found["images"][i]) for i in some]
    expected = alexnet_jax.predict(workdirs / "one", pictures, top=10)
    for row, answer in zip(probabilities, expected, strict=True):
        by_class = [dict(answer)[str(digit)] for digit in range(10)]
        np.testing.assert_allclose(row, by_class, rtol=1e-4, atol=1e-6)

    for query, six in list(zip(queries, found["nearest"], strict=True))[:5]:
        distances = np.linalg.norm(vectors - vectors[query], axis=1)
        farther = np.setdiff1d(others, six)
        assert len(six) == 6 and query not in six
        assert distances[six].max() <= distances[farther].min() + 1e-4


def test_lrn_shows_what_a_network_of_two_columns_computes(workdirs, photographs, monkeypatch):
    """The windows end between the columns, and every divisor is that of its output."""
    picture = photographs / "3" / "3.png"
    found = execute("lrn", monkeypatch, WORKDIR=workdirs / "two", PICTURE=picture)
    x, y = found["x"], found["y"]
    np.testing.assert_allclose(y, x / found["divisor"], rtol=1e-4, atol=1e-6)
    halves = [alexnet_jax.local_response_norm(half) for half in np.split(x, 2, axis=-1)]
    np.testing.assert_allclose(y, np.concatenate(halves, axis=-1), rtol=1e-6)
    assert found["remains"].max() <= 1 + 1e-6
    assert np.min(found["remains"]) < 0.9, "nothing to be seen"


def test_curves_compares_runs_and_leaves_a_line_that_is_being_written(
    workdirs, tmp_path, monkeypatch, capsys
):
    shutil.copytree(workdirs, tmp_path / "runs")
    with (tmp_path / "runs" / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epo')
    found = execute("curves", monkeypatch, RUNS=tmp_path / "runs")
    assert "model.groups: 1 (one), 2 (two)" in capsys.readouterr().out
    assert [len(lines["train"]) for lines in found["runs"].values()] == [3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_public_names_alone(name):
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
