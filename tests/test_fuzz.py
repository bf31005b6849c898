"""Generated bad input: whatever it is, one line that names it, or the right answer.

Never another exception, a hang, memory without bound, or a wrong picture or network that passes
for a right one. FUZZ=10 tries ten times as many cases. How they ended is shown after the tests.
"""

import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from alexnet_jax import InputError, parallel, predict, restore, train
from alexnet_jax import config as config_lib
from alexnet_jax import data as data_lib
from alexnet_jax import model as model_lib
from alexnet_jax import prepare as prepare_lib
from alexnet_jax.evaluate import eval_steps
from alexnet_jax.fields import FIELDS
from alexnet_jax.pictures import load_image
from alexnet_jax.prepare import prepare
from alexnet_jax.state import abstract_state
from configs import alexnet_two_device, cifar10_80sec
from tests import fuzz_configs, fuzz_files, fuzz_pictures, outcomes, runs

TIMES = int(os.environ.get("FUZZ", "1"))


def cases(number):
    """Settings of a test of `number` generated cases, the same ones every time."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # a case takes too long to be made smaller
        suppress_health_check=list(HealthCheck),
    )


def refused(kind, error):
    """Count a refusal and return its message, which is one line."""
    message = str(error)
    assert message.isprintable(), message
    assert 10 < len(message) < 3000, message
    assert "Traceback" not in message
    outcomes.note(kind, "refused")
    return message


# --- configs ------------------------------------------------------------------------------------


def _base(name):
    if name == "tiny":
        return runs.tiny_config("/nowhere")
    config = {"two devices": alexnet_two_device, "80 seconds": cifar10_80sec}[name].get_config()
    config.batch_size = 16
    return config


def _trace(config):
    """Trace a training step and both evaluations over the devices; nothing is computed."""
    layout = parallel.layout(config)
    rows, size = config.batch_size // layout.shares, config.dataset.image_size
    state = abstract_state(config)
    shape = (config.batch_size,)
    if isinstance(layout, parallel.Pmap):
        shape = (layout.shares, rows)
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((layout.shares, *leaf.shape), leaf.dtype), state
        )
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    step = functools.partial(
        train.train_step,
        model=model_lib.from_config(config, layout.column_axis),
        config=config,
        num_train=1000,
    )
    after, metrics = jax.eval_shape(layout.spread(step, updates_state=True), state, batch)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert "loss" in metrics
    batch["mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    for evaluation in eval_steps(config, layout):
        jax.eval_shape(evaluation, state, batch)


@cases(100)
@given(st.data())
def test_a_config_is_refused_by_name_or_its_steps_can_be_built(data):
    base = data.draw(st.sampled_from(("tiny", "two devices", "80 seconds")))
    config = _base(base)
    changed = data.draw(fuzz_configs.changes(dict(config_lib.flatten(config))))
    _refused_or_traced(config, changed)


def _refused_or_traced(config, changed):
    fuzz_configs.apply(config, changed)
    began = time.process_time()
    try:
        config_lib.validate(config)
    except InputError as error:
        message = refused("configs", error)
        assert re.search(r"config\.[a-z]|config (has no|lacks the) field", message), message
        assert time.process_time() - began < 5
        return
    try:
        _trace(config)
    except InputError as error:
        assert "config.batch_size=" in refused("configs, by the devices", error)
        return
    outcomes.note("configs", "accepted, steps traced")
    assert time.process_time() - began < 120


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ("tiny", {"augment.crop": 9}),
        ("tiny", {"model.features": (8, 8, 8, 8)}),
        ("tiny", {"model.biases": (0.0,) * 9}),
        ("tiny", {"model.stages": (("relu",),) * 6}),
        ("tiny", {"model.layers": ("conv1", "conv2", "local3"), "model.hidden": (8, 8, 8)}),
        ("tiny", {"model.groups": 2, "model.features": (8, 8, 8, 7, 8)}),
        (
            "tiny",
            {"model.groups": 2, "model.layers": ("conv1", "conv2", "conv3", "conv4", "local5")},
        ),
        ("tiny", {"model.hidden": (65536, 65536)}),
        ("80 seconds", {"model.pool.stride": 4}),
        ("80 seconds", {"model.kernels": (5, 5, 33)}),
        ("two devices", {"model.num_classes": 5}),
        ("two devices", {"model.groups": 1}),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_together_are_refused_and_not_traced(base, changed):
    config = _base(base)
    fuzz_configs.apply(config, changed)
    with pytest.raises(InputError, match=r"config\.") as caught:
        config_lib.validate(config)
    refused("configs", caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e308},
        {"plateau.rtol": 0.0},
        {"model.biases": (10**5000,) * 8},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_configs_that_once_got_through(changed):
    config = _base("tiny")
    fuzz_configs.apply(config, changed)
    with pytest.raises(InputError, match=next(iter(changed)).replace(".", r"\.")):
        config_lib.validate(config)


# --- command lines ------------------------------------------------------------------------------


def _one_line(code, out, err, kind):
    """Assert that a command did what it should or gave one line, and count it."""
    assert code in (0, 2)
    if code == 2:
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert out == ""
        return refused(kind, err[:-1])
    outcomes.note(kind, "accepted")
    return ""


_texts = st.one_of(
    st.text(max_size=20),
    fuzz_configs.anything.map(str),
    st.sampled_from(("(1,2", "[", "{'a': 1}", "1e999", "(" * 3000, "9" * 5000, "None", "")),
)


@cases(120)
@given(name=st.sampled_from(sorted(FIELDS)), text=_texts, spaced=st.booleans())
@example("model.features", "(" * 50000, False)
def test_any_text_as_a_value_is_accepted_or_one_line(tmp_path_factory, name, text, spaced):
    workdir = tmp_path_factory.getbasetemp() / "never"
    override = [f"--config.{name}", text] if spaced else [f"--config.{name}={text}"]
    command = ["--config=configs/quickstart.py", "--mode=summary", f"--workdir={workdir}"]
    message = _one_line(*fuzz_configs.command(*command, *override), "values on the command line")
    assert not message or re.search(r"config|argument|flag", message)
    assert not workdir.exists()


@cases(60)
@given(st.data())
def test_a_typo_suggests_the_nearest_name(data):
    """Of a field, a choice, a recipe, a flag or a mode."""
    kind = data.draw(st.sampled_from(("field", "choice", "recipe", "flag", "mode")))
    command = {"config": "configs/quickstart.py", "workdir": "/proc/never", "mode": "summary"}
    long = [name for name in sorted(FIELDS) if len(name.rpartition(".")[2]) > 6]
    chosen = [(n, c) for n in sorted(FIELDS) for c in FIELDS[n].choices if len(c) > 5]
    if kind == "field":
        right = data.draw(st.sampled_from(long))
        command[f"config.{fuzz_configs.typo(data.draw, right)}"] = "1"
    elif kind == "choice":
        field, right = data.draw(st.sampled_from(chosen))
        command[f"config.{field}"] = fuzz_configs.typo(data.draw, right)
    elif kind == "recipe":
        recipe = data.draw(st.sampled_from(("quickstart", "alexnet_two_device", "cifar10_80sec")))
        command["config"] = f"configs/{fuzz_configs.typo(data.draw, recipe)}.py"
        right = f"configs/{recipe}.py"
    elif kind == "mode":
        right = data.draw(st.sampled_from(("train", "evaluate", "predict", "summary", "prepare")))
        command["mode"] = fuzz_configs.typo(data.draw, right)
    else:
        right = data.draw(st.sampled_from(("config", "workdir", "mode", "images")))
        command[fuzz_configs.typo(data.draw, right)] = command.pop(right, "x")
    words = [f"--{name}={value}" for name, value in command.items()]
    message = _one_line(*fuzz_configs.command(*words), "typos")
    assert f"did you mean {right!r}?" in message, message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=a\0b"], r"--workdir=a\\x00b is no path"),
        (["--workdir=/tmp/\udcff"], r"--workdir=/tmp/\\udcff is no path"),
        (["--workdir=~nobody-here/run"], "--workdir=~nobody-here/run is no path"),
        (["--config.dataset.data_dir=~nobody-here/data"], "config.dataset.data_dir=.*a path"),
        (["--config.dataset.path=pictures"], "nothing else takes one"),
        (["--config.dataset.name=folder"], "needs --config.dataset.path=FOLDER"),
        (["--config.batch_size=2147483640"], "config.batch_size=.* MB are free"),
        (["--config.model.hidden=(65536,65536)"], "fc7 has 4,294,967,296 weights"),
        (["--config=configs/alexnet.py\n"], r"alexnet.py\\n is no file; did you mean"),
        (["--config=/dev/zero"], "/dev/zero is no file"),
        (["--config"], "Missing value for flag --config"),
        (["--confg.seed=1"], "no flag --confg.seed; did you mean 'config'"),
        (["--config.dataset.name=imagnet2012"], "imagenet2012"),
        (["--config.num_epochs=1\n2"], "config.num_epochs="),
        (["--config={tmp}/loses.py"], "loses.py cannot be loaded: .*of get_config"),
        (["--config={tmp}/list.py"], "list.py cannot be loaded"),
    ],
)
def test_what_once_ended_in_a_traceback_or_two_lines(arguments, message, tmp_path):
    recipe = "def get_config():\n    raise ValueError('the first line\\nof get_config')\n"
    (tmp_path / "loses.py").write_text(recipe)
    (tmp_path / "list.py").write_text("def get_config():\n    return [1]\n")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    before = sorted(tmp_path.iterdir())
    data, workdir = f"--config.dataset.data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'w'}"
    code, out, err = fuzz_configs.command(
        "--config=configs/quickstart.py", workdir, data, *arguments
    )
    assert code == 2
    assert re.search(message, _one_line(code, out, err, "command lines of before"))
    assert sorted(tmp_path.iterdir()) == before


# --- pictures -----------------------------------------------------------------------------------


@cases(500)
@given(fuzz_pictures.damaged())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_a_damaged_picture_is_a_square_or_one_line(tmp_path_factory, picture):
    """What still decodes is a picture: the formats themselves hold no checksum, or few."""
    name, content = picture
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    began = time.process_time()
    try:
        square = load_image(path, 16)
        assert (square.shape, square.dtype) == ((16, 16, 3), np.uint8)
        outcomes.note("pictures", "decoded")
    except InputError as error:
        assert str(path) in refused("pictures", error)
    assert time.process_time() - began < 10


_MEASURE = """
import json, resource, time
from alexnet_jax.errors import InputError
from alexnet_jax.pictures import load_image
from alexnet_jax.prepare import prepare
from tests import fuzz_pictures
files = fuzz_pictures.expensive()
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
pages = lambda: int(open("/proc/self/statm").read().split()[1])
for name, content in files.items():
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before, began = pages(), time.monotonic()
    try:
        outcome = str(load_image(content, 16, name).shape)
    except InputError as error:
        outcome = f"InputError {error}"
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    used = int(peak.split()[1]) / 1024 - before * resource.getpagesize() / 2**20
    print(json.dumps([name, outcome, used, time.monotonic() - began]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured through /proc")
def test_files_made_to_be_expensive_take_bounded_memory_and_time():
    """Below Pillow's limit, 89 million pixels, whole: 270 MB, twice while they are converted."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, cwd=runs.ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 20
    for name, outcome, megabytes, seconds in found:
        assert outcome == "(16, 16, 3)" or name in outcome, outcome
        outcomes.note("expensive pictures", "decoded" if outcome[0] == "(" else "refused")
        assert megabytes < 1200, (name, megabytes)
        assert seconds < 15, (name, seconds)


# --- folders of pictures ------------------------------------------------------------------------


def _dataset(data_dir, path, **fields):
    defaults = {"name": "folder", "path": str(path), "data_dir": str(data_dir), "image_size": 4}
    defaults |= {"encoding": "raw", "jpeg_quality": 95, "on_error": "raise", "cache": "none"}
    return ml_collections.ConfigDict(defaults | fields)


def _read(dataset, split):
    """All records of a split as (picture, label)."""
    records, size = dataset.records[split], dataset.image_size
    found = []
    for index in range(len(records)):
        image = np.empty((size, size, 3), np.uint8)
        label = records.read(index, image)
        found.append((image.tobytes(), label))
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 101 pictures, so that one bad one is less than 1 % of all."""
    path = tmp_path_factory.mktemp("many")
    for i in range(101):
        fuzz_files.picture(path / f"{i:03d}.png", i)
    return path


@cases(25)
@given(
    classes=st.lists(st.sampled_from(fuzz_files.CLASSES), min_size=1, max_size=3, unique=True),
    names=st.lists(st.sampled_from(fuzz_files.NAMES), max_size=4, unique=True),
    odd=st.lists(st.sampled_from(sorted(fuzz_files.ODDITIES)), max_size=2, unique=True),
    bad_class=st.one_of(st.none(), st.none(), st.sampled_from(fuzz_files.BAD_CLASSES)),
    empty=st.integers(0, 9).map(lambda n: n == 0),
    split=st.sampled_from(("train", "val")),
    on_error=st.sampled_from(("raise", "skip")),
)
@example(["cat", "cat "], [], [], None, False, "val", "raise")
@example(["cat"], ["two\nlines.png"], ["link to itself.png"], None, False, "train", "skip")
@example(["cat"], [], ["device.png", "pipe.png"], None, False, "train", "raise")
def test_a_folder_is_refused_or_read_back_as_it_is(
    tmp_path_factory, many, classes, names, odd, bad_class, empty, split, on_error
):
    root = tmp_path_factory.mktemp("folder")
    wanted = {"train": [], "val": []}
    classes = sorted(classes)
    for part in wanted:
        for label, class_name in enumerate(classes):
            folder = root / part / class_name
            folder.mkdir(parents=True)
            files = {"0.png": 200 + label}
            if part == "train" and label == 0:
                for file in many.iterdir():
                    os.link(file, folder / file.name)
                files = {f"{i:03d}.png": i for i in range(101)}
            if part == split:
                files |= {name: 210 + i for i, name in enumerate(names)}
                for name in names:
                    fuzz_files.picture(folder / name, files[name])
            for name in files:
                if not (folder / name).exists():
                    fuzz_files.picture(folder / name, files[name])
            wanted[part] += [(bytes([files[name]] * 48), label) for name in sorted(files)]
    at = root / split / classes[-1]
    for name in odd:
        fuzz_files.ODDITIES[name][0](at / name)
    for part in wanted if bad_class else ():
        (root / part / bad_class).mkdir()
        fuzz_files.picture(root / part / bad_class / "0.png", 0)
    if empty:
        (root / split / "empty").mkdir()
    bad = [name for name in odd if fuzz_files.ODDITIES[name][1]]
    try:
        directory = prepare(_dataset(root / "data", root, on_error=on_error))
        dataset = data_lib.open_dataset(directory, on_error)
    except InputError as error:
        message = refused("folders", error)
        assert bad or bad_class or empty, message
        kept = list((root / "data").rglob("*.incomplete"))
        assert not kept or "finished shards are kept" in message
        return
    assert not bad_class
    assert not empty
    assert on_error == "skip" or not bad
    assert dataset.class_names == tuple(classes)
    for part in wanted:
        assert _read(dataset, part) == wanted[part]
    outcomes.note("folders", "read back" + (" without the damaged" if bad else ""))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_hundreds_of_empty_files_are_refused(tmp_path, on_error):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for i in range(400):
            (tmp_path / part / "cat" / f"{i}.jpg").touch()
    with pytest.raises(InputError, match=r"cat/.*jpg") as caught:
        prepare(_dataset(tmp_path / "data", tmp_path, on_error=on_error))
    refused("folders", caught.value)


# --- prepared data sets -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def prepared(request, tmp_path_factory):
    """A prepared set of several shards, and what is in it."""
    root = tmp_path_factory.mktemp(request.param)
    for part, number in (("train", 9), ("val", 4)):
        for label, class_name in enumerate(("cat", "dog")):
            (root / part / class_name).mkdir(parents=True)
            for i in range(number):
                value = (100 if part == "val" else 0) + 50 * label + 4 * i
                fuzz_files.picture(root / part / class_name / f"{i}.png", value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_lib, "SHARD_BYTES", 300 if request.param == "raw" else 40)
        directory = prepare(_dataset(root / "data", root, encoding=request.param))
    dataset = data_lib.open_dataset(directory)
    return directory, dataset, {part: _read(dataset, part) for part in ("train", "val")}


@cases(120)
@given(seed=st.integers(0, 2**32), on_error=st.sampled_from(("raise", "skip")))
def test_a_damaged_prepared_set_is_refused_or_holds_what_it_held(
    tmp_path_factory, prepared, seed, on_error
):
    directory, dataset, wanted = prepared
    copy = tmp_path_factory.mktemp("copy") / directory.name
    shutil.copytree(directory, copy)
    how = fuzz_files.damage(copy, random.Random(seed))
    try:
        found = data_lib.open_dataset(copy, on_error)
        parts = {part: _read(found, part) for part in wanted}
    except InputError as error:
        refused("prepared sets", error)
        return
    for part in wanted:
        # Shards of equal size that changed places, a train one with a val one even, are whole.
        if how.startswith("swapped"):
            assert set(parts[part]) <= set(wanted["train"] + wanted["val"]), how
        else:
            assert parts[part] == wanted[part], how
    assert found.class_names == dataset.class_names, how
    np.testing.assert_array_equal(found.mean_image, dataset.mean_image)
    np.testing.assert_array_equal(found.eigenvectors, dataset.eigenvectors)
    np.testing.assert_array_equal(found.eigenvalues, dataset.eigenvalues)
    outcomes.note("prepared sets", "as it was")


# --- checkpoints and run directories ------------------------------------------------------------


def _smallest(data_dir):
    """One convolution and one hidden layer on 12 of 16 pixels: compiled within a second or two."""
    config = runs.tiny_config(data_dir)
    model = config.model
    model.layers, model.features, model.kernels = ("conv1",), (4,), (3,)
    model.strides, model.padding, model.stages = (2,), (0,), (("relu", "max_pool"),)
    model.hidden, model.cross_layers, model.biases = (8,), (), (0.0, 0.0, 0.0)
    config.dataset.image_size, config.augment.crop = 16, 12
    config.num_steps, config.checkpoint_every_steps = 4, 2
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, its config, and the states that its checkpoints hold."""
    root = tmp_path_factory.mktemp("finished")
    config = _smallest(root / "data")
    train.train_and_evaluate(config, root / "run")
    kept = sorted(int(path.name) for path in (root / "run" / "checkpoints").iterdir())
    return root / "run", config, {step: restore(root / "run", step)[1] for step in kept}


def _is(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _foreign(root, rng):
    """Put something that is none of ours beside the checkpoints, or move one of them."""
    checkpoints = root / "checkpoints"
    number = rng.choice(("3", "9", "007", "-1", "x", "1e3", "4.tmp", "99999999999999999999", "٣"))
    how = rng.choice(("file", "folder", "link", "copied", "lost"))
    match how:
        case "file":
            (checkpoints / number).write_text("x")
        case "folder":
            (checkpoints / number / "metrics").mkdir(parents=True)
        case "link":
            (checkpoints / number).symlink_to(number)
        case "copied":
            shutil.copytree(checkpoints / "4", checkpoints / f"{number}.copy")
        case "lost":
            shutil.rmtree(checkpoints / rng.choice(("2", "4")))
    return f"{how} {number}"


@pytest.mark.parametrize("use", ["restore", "train"])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics/metrics", None),
        ("metrics/metrics", '{"top1_error": "x"}'),
        ("_CHECKPOINT_METADATA", "[" * 100_000),
    ],
)
def test_metrics_and_metadata_that_are_none_are_refused_or_passed_over(
    finished, tmp_path, use, file, content
):
    run, config, saved = finished
    shutil.copytree(run, tmp_path / "run")
    for damaged in (tmp_path / "run" / "checkpoints").glob(f"*/{file}"):
        damaged.unlink()
        damaged.mkdir() if content is None else damaged.write_text(content)
    try:
        if use == "train":
            train.train_and_evaluate(config, tmp_path / "run")
        variables = restore(tmp_path / "run")[1]
    except InputError as error:
        refused("run directories, restored", error)
    else:
        assert any(_is(variables, state) for state in saved.values())


@cases(12)
@given(seed=st.integers(0, 2**32), step=st.sampled_from(("best", "latest", 2, 4, 3)))
def test_a_damaged_run_gives_a_state_that_was_saved_or_one_line(
    tmp_path_factory, finished, seed, step
):
    run, config, saved = finished
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    rng = random.Random(seed)
    how = (_foreign if rng.random() < 0.3 else fuzz_files.damage)(copy, rng)
    try:
        _, variables, found = restore(copy, step)
    except InputError as error:
        refused("run directories, restored", error)
        return
    assert any(_is(variables, state) for state in saved.values()), how
    if isinstance(step, int):
        assert _is(variables, saved[step]), how
    same = found.to_dict() == config.to_dict()
    outcomes.note("run directories, restored", "as saved" if same else "as saved, config changed")


@cases(4)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_run_goes_on_to_the_same_state_or_is_one_line(tmp_path_factory, finished, seed):
    run, config, saved = finished
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    rng = random.Random(seed)
    how = (_foreign if rng.random() < 0.3 else fuzz_files.damage)(copy, rng)
    try:
        train.train_and_evaluate(config, copy)
    except InputError as error:
        refused("run directories, continued", error)
        return
    assert _is(restore(copy, "latest")[1], saved[4]), how
    outcomes.note("run directories, continued", "ended in the same state")


@cases(4)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_run_predicts_as_before_or_is_one_line(tmp_path_factory, finished, seed):
    run, _, _ = finished
    picture = np.full((8, 8, 3), 90, np.uint8)
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    how = fuzz_files.damage(copy / "checkpoints", random.Random(seed))
    try:
        answer = predict(copy, [picture])
    except InputError as error:
        refused("run directories, predicting", error)
        return
    assert answer == predict(run, [picture]), how
    outcomes.note("run directories, predicting", "as before")


# --- python run.py --------------------------------------------------------------------------------


def test_the_command_itself_names_what_it_cannot_use(finished, tmp_path):
    run = finished[0]
    odd = tmp_path / "two\nlines \udcff.png"
    odd.write_bytes(fuzz_pictures.WHOLE["a.png"])
    done = runs.run("--mode=predict", f"--workdir={run}", str(odd))
    assert done.returncode == 0, done.stderr
    assert "\\udcff" in done.stdout
    bomb = tmp_path / "bomb\n.png"
    bomb.write_bytes(fuzz_pictures.expensive()["sides.png"])
    done = runs.run("--mode=predict", f"--workdir={run}", f"--images={odd}", str(bomb))
    assert "exceeds limit" in _one_line(done.returncode, done.stdout, done.stderr, "run.py")
    workdir = f"--workdir={tmp_path}/run"
    done = runs.run(*runs.TINY, workdir, "--config.batch_size=2147483647")
    assert "MB are free" in _one_line(done.returncode, done.stdout, done.stderr, "run.py")
    assert sorted(tmp_path.iterdir()) == sorted([odd, bomb])
