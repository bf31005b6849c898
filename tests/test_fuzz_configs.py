"""Generated bad configs and command lines give the right answer or one line with the cause.

They never give another exception, a hang, unbounded memory, or a wrong network. FUZZ=10 generates
ten times as many cases. How they ended is shown after the tests.
"""

import functools
import re
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alexnet_jax import InputError, parallel
from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.evaluate import eval_steps
from alexnet_jax.fields import FIELDS
from alexnet_jax.state import abstract_state
from alexnet_jax.step import train_step
from configs import alexnet_two_device, cifar10_80sec
from tests import fuzz_configs, outcomes, runs
from tests.generated import cases, one_line, refused


def _base(name):
    if name == "tiny":
        return runs.tiny_config("/nowhere")
    config = {"two devices": alexnet_two_device, "80 seconds": cifar10_80sec}[name].get_config()
    config.batch_size = 16
    return config


def _trace(config):
    """Trace a training step and both evaluations over the devices, without computing."""
    sharding = parallel.sharding(config)
    config = config_lib.with_num_classes(config, 10)
    rows, size = config.batch_size // sharding.shares, config.dataset.image_size
    state = abstract_state(config)
    shape = (config.batch_size,)
    if isinstance(sharding, parallel.Pmap):
        shape = (sharding.shares, rows)
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((sharding.shares, *leaf.shape), leaf.dtype), state
        )
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    step = functools.partial(
        train_step,
        model=model_lib.from_config(config, sharding.column_axis),
        config=config,
        num_train=1000,
    )
    after, metrics = jax.eval_shape(sharding.map(step, updates_state=True), state, batch)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert "loss" in metrics
    batch["mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    for evaluation in eval_steps(config, sharding):
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
        ("tiny", {"model.layers": ("conv1", "local2"), "model.hidden": (8, 8)}),
        ("tiny", {"model.groups": 2, "model.features": (8, 8, 7)}),
        ("tiny", {"model.groups": 2, "model.layers": ("conv1", "conv2", "local3")}),
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
def test_configs_that_were_once_accepted_are_refused(changed):
    config = _base("tiny")
    fuzz_configs.apply(config, changed)
    with pytest.raises(InputError, match=next(iter(changed)).replace(".", r"\.")):
        config_lib.validate(config)


_texts = st.one_of(
    st.text(max_size=20),
    fuzz_configs.anything.map(str),
    st.sampled_from(("(1,2", "[", "{'a': 1}", "1e999", "(" * 3000, "9" * 5000, "None", "")),
)


@cases(120)
@given(name=st.sampled_from(sorted(FIELDS)), text=_texts, spaced=st.booleans())
@example("model.features", "(" * 50000, False)
@example("model.cross_layers", "(" * 3000, False)
def test_any_text_as_a_value_is_accepted_or_gives_one_line(tmp_path_factory, name, text, spaced):
    workdir = tmp_path_factory.getbasetemp() / "never"
    override = [f"--config.{name}", text] if spaced else [f"--config.{name}={text}"]
    command = ["--config=configs/quickstart.py", "--mode=summary", f"--workdir={workdir}"]
    message = one_line(*fuzz_configs.command(*command, *override), "values on the command line")
    assert not message or re.search(r"config|argument|flag", message)
    assert not workdir.exists()


@cases(60)
@given(st.data())
def test_a_typo_suggests_the_nearest_name(data):
    """The name is that of a field, a choice, a recipe, a flag or a mode."""
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
        right = f"--{right}"
    words = [f"--{name}={value}" for name, value in command.items()]
    message = one_line(*fuzz_configs.command(*words), "typos")
    assert f"did you mean {right!r}?" in message, message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=a\0b"], r"--workdir=a\\x00b is not the path of a directory"),
        (["--workdir=/tmp/\udcff"], r"--workdir=/tmp/\\udcff is not the path of a directory"),
        (["--workdir=~nobody-here/run"], "--workdir=~nobody-here/run: there is no such home"),
        (["--workdir=gs:run"], "--workdir=gs:run: give a directory of this machine, not a URL"),
        (
            ["--config.dataset.data_dir=~nobody-here/data"],
            "config.dataset.data_dir=~nobody-here/data: there is no such home directory; give",
        ),
        (
            ["--config.dataset.name=folder", "--config.dataset.path=~nobody-here/x"],
            "config.dataset.path=~nobody-here/x: there is no such home directory",
        ),
        (["--config.dataset.path=pictures"], "nothing else takes one"),
        (["--config.dataset.name=folder"], "needs --config.dataset.path=FOLDER"),
        (["--config.batch_size=2147483640"], "config.batch_size=.* MB are free"),
        (["--config.model.hidden=(65536,65536)"], "fc7 has 4,294,967,296 weights"),
        (["--config=configs/alexnet.py\n"], r"alexnet.py\\n does not exist; did you mean"),
        (["--config=/dev/zero"], "/dev/zero is not a file"),
        (["--config"], "Missing value for flag --config"),
        (["--confg.seed=1"], "no flag --confg.seed; did you mean '--config'"),
        (["--config.dataset.name=imagnet2012"], "imagenet2012"),
        (["--config.num_epochs=1\n2"], "config.num_epochs="),
        (["--config={tmp}/loses.py"], "loses.py cannot be loaded: .*of get_config"),
        (["--config={tmp}/list.py"], "list.py cannot be loaded"),
    ],
)
def test_command_lines_that_once_ended_in_a_traceback_give_one_line(arguments, message, tmp_path):
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
    assert re.search(message, one_line(code, out, err, "command lines of before"))
    assert sorted(tmp_path.iterdir()) == before
