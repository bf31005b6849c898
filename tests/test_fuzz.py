"""Generated bad input: whatever it is, one line that names it, or the right answer.

Never another exception, a hang, memory without bound, or a wrong picture or network that passes
for a right one. FUZZ=10 tries ten times as many cases. How they ended is shown after the tests.
"""

import functools
import os
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alexnet_jax import InputError, parallel, train
from alexnet_jax import config as config_lib
from alexnet_jax import model as model_lib
from alexnet_jax.evaluate import eval_steps
from alexnet_jax.fields import FIELDS
from alexnet_jax.state import abstract_state
from configs import alexnet_two_device, cifar10_80sec
from tests import fuzz_configs, outcomes, runs

TIMES = int(os.environ.get("FUZZ", "1"))


def cases(number):
    """Settings of a test of `number` generated cases, the same ones every time."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
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


@cases(130)
@given(st.data())
def test_a_config_is_refused_by_name_or_its_steps_can_be_built(data):
    base = data.draw(st.sampled_from(("tiny", "two devices", "80 seconds")))
    config = _base(base)
    changed = data.draw(fuzz_configs.changes(dict(config_lib.flatten(config))))
    _refused_or_traced(config, changed)


def _refused_or_traced(config, changed):
    fuzz_configs.apply(config, changed)
    began = time.monotonic()
    try:
        config_lib.validate(config)
    except InputError as error:
        message = refused("configs", error)
        assert re.search(r"config\.[a-z]|config (has no|lacks the) field", message), message
        assert time.monotonic() - began < 5
        return
    try:
        _trace(config)
    except InputError as error:
        assert "config.batch_size=" in refused("configs, by the devices", error)
        return
    outcomes.note("configs", "accepted, steps traced")
    assert time.monotonic() - began < 120


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
    command = {"config": "configs/quickstart.py", "workdir": "/proc/never", "mode": "train"}
    long = [name for name in sorted(FIELDS) if len(name.rpartition(".")[2]) > 6]
    chosen = [(n, c) for n in sorted(FIELDS) for c in FIELDS[n].choices if len(c) > 5]
    if kind == "field":
        right = data.draw(st.sampled_from(long))
        command[f"config.{fuzz_configs.typo(data.draw, right)}"] = "1"
    elif kind == "choice":
        field, right = data.draw(st.sampled_from(chosen))
        command[f"config.{field}"] = fuzz_configs.typo(data.draw, right)
    elif kind == "recipe":
        right = data.draw(st.sampled_from(("configs/quickstart.py", "configs/cifar10_13pct.py")))
        command["config"] = fuzz_configs.typo(data.draw, right)
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
