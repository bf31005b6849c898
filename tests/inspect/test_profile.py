"""Profiling: the timed parts are the network, a trace is written, and no run is changed."""

import json

import jax
import numpy as np
import pytest

from alexnet_jax import InputError
from alexnet_jax import model as model_lib
from alexnet_jax.inspect import layer_times, profile
from configs import alexnet_2012_code
from tests.agreement import agree


def test_the_parts_in_sequence_are_the_network(config, monkeypatch):
    """Forward, and the gradient of the first layer, with every kind of stage; see the recipe."""
    config.model = alexnet_2012_code.get_config().model
    config.model.features, config.model.hidden = (8, 8, 8, 8, 8), (16, 16)
    config.model.num_classes = 10
    config.model.dropout = 0.0
    config.augment.crop = 67
    images = np.random.default_rng(0).normal(0, 50, (4, 67, 67, 3)).astype(np.float32)
    model = model_lib.from_config(config)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    outputs, pullbacks = [], []

    def call_once(function, *arguments):
        if len(outputs) == len(pullbacks):
            outputs.append(function(*arguments)[0])
        else:
            pullbacks.append(arguments[0])
        return 1.0

    monkeypatch.setattr(layer_times, "seconds", call_once)
    times = layer_times.layer_times(config, params, images)
    apply = jax.jit(lambda params: model.apply({"params": params}, images, train=True))
    logits, pullback = jax.vjp(apply, params)
    agree(outputs[-1], logits, rtol=1e-6, what="logits")
    (wanted,) = pullback(np.ones_like(logits))
    g = np.ones_like(logits)
    for back in reversed(pullbacks[1:]):
        _, g = back(g)
    (own,) = pullbacks[0](g)
    agree(own["conv1"], wanted["conv1"], rtol=1e-5, what="gradient ")
    assert [name.partition("+")[0] for name in times if name.startswith(("conv", "fc"))] == [
        *model.layers,
        "fc6",
        "fc7",
        "fc8",
    ]


@pytest.mark.parametrize(
    ("parallel", "accumulate_steps", "cache"),
    [("pmap", 2, "device"), pytest.param("split", 1, "none", marks=pytest.mark.slow)],
)
def test_it_writes_a_trace_and_tables_and_does_not_change_runs(
    config, tmp_path, parallel, accumulate_steps, cache
):
    workdir = tmp_path / "profile"
    config.model.groups, config.parallel = 2, parallel
    config.accumulate_steps, config.dataset.cache = accumulate_steps, cache
    text = profile(config, workdir)
    report = json.loads((workdir / "profile.json").read_text())
    for name in ("flops", "temp bytes", "peak bytes"):
        assert report["compiler"][name] > 1e4
    for name, of_part in report["parts"].items():
        assert name in text
        times = [of_part[key] for key in ("forward", "backward") if key in of_part]
        assert all(time > 0 for time in times)
        share = sum(times) / report["step_seconds"]
        wanted = None if parallel == "split" else pytest.approx(share)
        assert of_part.get("share") == wanted
    traces = workdir / "tensorboard" / "plugins" / "profile"
    assert len(list(traces.glob("*/*.xplane.pb"))) == len(list(traces.glob("*/*.trace.json.gz")))
    assert list(traces.glob("*/*.xplane.pb"))
    assert sorted(path.name for path in workdir.iterdir()) == ["profile.json", "tensorboard"]

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run; give another directory for --mode=profile"):
        profile(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
