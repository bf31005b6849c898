"""Every notebook of notebooks/ runs on a small run, draws, and uses public names only."""

import ast
import json
import pathlib
import re
import shutil
import types

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

    def display(figure, display_id):
        """Stand in for IPython's, which a kernel offers without an import."""
        assert display_id is True
        figure.canvas.draw()
        drawn.append(figure)
        return types.SimpleNamespace(update=lambda figure: display(figure, True))

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()  # what is wrong in a figure may show only here
            drawn.append(number)
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.syspath_prepend(FOLDER)  # notebooks change sys.path: it is put back
    monkeypatch.chdir(FOLDER)
    variables = {"__name__": "__main__", "display": display}
    for number, cell in enumerate(code_cells(name)):
        exec(compile("".join(cell["source"]), f"{name}.ipynb {cell['id']}", "exec"), variables)
        if number == 0:
            variables |= {n: plain(v) for n, v in parameters.items() if n in variables}
    assert drawn, f"{name} draws no figure"
    assert not plt.get_fignums(), f"{name} leaves a figure that it does not show"
    return variables


def plain(value):
    """Return a parameter as the first cell would have it: a path as a string."""
    return str(value) if isinstance(value, pathlib.Path) else value


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
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits()
    for i in range(12):
        image = Image.fromarray(np.uint8(digits.images[i] * 15)).resize((40 + i, 60))
        path = folder / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return folder


def test_there_are_eight_notebooks_and_all_are_listed():
    assert [
        *("curves", "filters", "finetune", "lrn", "neighbours", "predict", "saliency", "train")
    ] == NAMES
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(listed) == [(name, name) for name in NAMES]


@pytest.mark.parametrize("name", ["filters", "predict"])
def test_a_notebook_runs_on_a_folder_of_images_and_two_columns(
    name, workdirs, photographs, monkeypatch
):
    found = execute(name, monkeypatch, WORKDIR=workdirs / "two", IMAGES=photographs)
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
    found = execute("neighbours", monkeypatch, WORKDIR=workdirs / run, IMAGES=photographs)
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
    image = photographs / "3" / "3.png"
    found = execute("lrn", monkeypatch, WORKDIR=workdirs / run, IMAGE=image)
    out = capsys.readouterr().out
    assert out.startswith(f"{first}: ")
    assert ("has no local response normalization" not in out) == normalised
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
        execute(name, monkeypatch, WORKDIR=workdirs / "bare", IMAGES=photographs)


def test_predict_uses_the_validation_digits(workdirs, digits, monkeypatch, capsys):
    found = execute("predict", monkeypatch, WORKDIR=workdirs / "digits")
    batches = list(data.eval_batches(digits, batch_size=64))
    images, labels = (
        np.concatenate([batch[n][batch["mask"]] for batch in batches]) for n in ("image", "label")
    )
    assert found["labels"] == [digits.class_names[label] for label in labels]
    for i in (0, 100, 358):
        image = Image.fromarray(found["images"][i]).convert("RGB")
        shown = image.resize(images[i].shape[:2], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(shown, images[i])
    share = np.mean(
        [a[0][0] == label for a, label in zip(found["answers"], found["labels"], strict=True)]
    )
    expected = f"359 images: the right class is the first for {share:.1%}"
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
    images = [np.asarray(found["images"][i]) for i in some]
    expected = alexnet_jax.predict(workdirs / "digits", images, top=10)
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
    image = photographs / "3" / "3.png"
    found = execute("lrn", monkeypatch, WORKDIR=workdirs / "two", IMAGE=image)
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


def test_train_draws_what_metrics_jsonl_holds(config, digits, tmp_path, monkeypatch):
    """From the callback while it trains, and from the file if the run has finished before."""
    changes = runs.FIELDS | {"dataset.data_dir": config.dataset.data_dir, "num_steps": 2}
    for _ in range(2):  # the second time the run has finished
        found = execute("train", monkeypatch, WORKDIR=tmp_path / "run", CHANGES=changes)
        assert found["result"]["step"] == 2
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert found["lines"] == [json.loads(line) for line in text.splitlines()]
        train, val = (line.get_xydata() for line in found["panels"][0].get_lines())
        assert len(train) == len(val) == 1
        written = [line["loss"] for line in found["lines"] if line["split"] == "train"]
        assert train[0, 1] == pytest.approx(np.mean(written))


def test_finetune_takes_the_layers_of_a_run_and_freezes_the_first(workdirs, tmp_path, monkeypatch):
    """On a folder of three classes; the new run answers for an image of one's own."""
    folder, digits = tmp_path / "own", load_digits()
    for i in range(60):
        path = folder / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.uint8(digits.images[i] * 15)).save(path)
    found = execute(
        "finetune",
        monkeypatch,
        PRETRAINED=workdirs / "digits",
        IMAGES=folder,
        IMAGE=folder / "a" / "0.png",
        WORKDIR=tmp_path / "run",
        CHANGES={"num_steps": 2, "batch_size": 8},
    )
    params = {
        name: alexnet_jax.restore(path, "latest").variables["params"]
        for name, path in (
            ("source", workdirs / "digits"),
            ("tuned", tmp_path / "run"),
            ("scratch", tmp_path / "run-scratch"),
        )
    }
    for layer, same in (("conv1", True), ("conv2", False), ("fc4", False)):
        source, tuned, scratch = (params[run][layer]["kernel"] for run in params)
        assert np.array_equal(source, tuned) == same
        assert np.allclose(source, tuned, atol=0.05)  # it began there
        assert not np.allclose(source, scratch, atol=0.05)
    assert sorted(found["names"]) == ["a", "b", "c"]
    assert [len(line.get_xdata()) for line in found["axis"].get_lines()] == [1, 1, 2]
    sizes = {found["letter_image"]("E", np.random.default_rng(i)).size for i in range(3)}
    assert sizes == {(72, 72)}


@pytest.mark.parametrize("run", ["two", "cifar10"])
def test_saliency_is_the_gradient_and_occlusion_the_fall_of_the_probability(
    run, workdirs, photographs, monkeypatch, capsys
):
    found = execute("saliency", monkeypatch, WORKDIR=workdirs / run, IMAGES=photographs)
    model, variables, _ = found["run"]
    image, answer, gradient = (found[n][0] for n in ("inputs", "answers", "gradients"))
    place = np.unravel_index(np.argmax(gradient), gradient.shape)
    changes = []
    for colour in range(3):
        moved = np.stack([image, image])
        moved[0][(*place, colour)] += 0.05
        moved[1][(*place, colour)] -= 0.05
        above, below = model.apply(variables, moved)[:, answer]
        changes.append(abs(above - below) / 0.1)
    assert max(changes) == pytest.approx(gradient[place], rel=0.05)

    side, across = image.shape[0], found["ACROSS"]
    covered = image.copy()
    covered[side - side // 4 :, : side // 4] = 0  # the lower left corner
    whole, without = jax.nn.softmax(model.apply(variables, np.stack([image, covered])))[:, answer]
    assert found["falls"][0].shape == (across, across)
    assert found["falls"][0][-1, 0] == pytest.approx(whole - without, abs=1e-6)

    folders = alexnet_jax.evaluate(workdirs / run, photographs, test_crops=False)
    wrong = sum(
        count
        for label, answers in folders["confusion"].items()
        for name, count in answers.items()
        if name != label
    )
    assert sum(found["wrong"].values()) == wrong
    assert f"top-1 error {folders['top1_error']:.2%}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_in_a_kernel(name, workdirs, data_dir, tmp_path):
    """As Jupyter runs it: with its inline figures, its `display` and its working directory."""
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    changes = {"num_steps": 3, "batch_size": 16}
    if name == "train":
        changes |= runs.FIELDS | {"dataset.data_dir": str(data_dir)}
    parameters = {
        "WORKDIR": str(tmp_path / "run" if name in ("train", "finetune") else workdirs / "digits"),
        "PRETRAINED": str(workdirs / "digits"),
        "RUNS": str(workdirs),
        "CHANGES": changes,
    }
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for variable, value in parameters.items():
        first.source += f"\nif {variable!r} in globals():\n    {variable} = {value!r}"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    assert images_in(notebook.cells), f"{name} draws no figure"


def images_in(cells):
    """Return the PNG images in the outputs of the code cells, base64."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_public_names_only(name):
    for cell in code_cells(name):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom):
                package = (node.module or "").split(".")[0]
                assert package not in ("configs", "experiments", "tests") and not node.level
                if package == "alexnet_jax" and node.module != "alexnet_jax.configs":
                    assert node.module == "alexnet_jax"
                    assert {alias.name for alias in node.names} <= set(alexnet_jax.__all__)
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names} - {"alexnet_jax"}
                packages = {name.split(".")[0] for name in names}
                assert not packages & {"alexnet_jax", "configs", "experiments", "tests"}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "alexnet_jax":
                assert node.attr in alexnet_jax.__all__
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_with_small_outputs_and_ready_to_open(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)  # 4.5: cells have ids
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert images_in(cells), f"{name} is stored without its figures: execute it"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 200_000
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error"
        text = "".join(output.get("text", ()))
        assert not re.search(r"(?<![\w.])/\w+/", text), f"a path of a machine: {text}"

    parameters = code_cells(name)[0]
    assert parameters["metadata"]["tags"] == ["parameters"]  # papermill replaces these too
    nodes = ast.parse("".join(parameters["source"])).body
    assert all(isinstance(node, ast.Assign) for node in nodes)
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    for path in values.keys() & {"WORKDIR", "PRETRAINED", "RUNS"}:
        runs_folder = (FOLDER / values[path]).resolve()
        assert runs_folder.is_relative_to(pathlib.Path(runs.ROOT).resolve() / "runs")
