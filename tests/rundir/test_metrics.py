"""The metrics that a run writes."""

import io
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from alexnet_jax import modes, parallel, programs
from alexnet_jax.rundir import MetricsWriter, RunRecord, tensorboard
from alexnet_jax.rundir.metrics import WINDOW
from alexnet_jax.step import train_step
from alexnet_jax.train import train_and_evaluate
from tests import runs


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only element is the current time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def _writer(workdir, start_step=0, evaluated=False, log_every_steps=1, num_classes=10):
    config = ConfigDict({"batch_size": 10, "num_steps": 1000, "log_every_steps": log_every_steps})
    config.model = {"num_classes": num_classes}
    record = RunRecord(validation={} if evaluated else None)
    return MetricsWriter(workdir, config, 50, start_step, record)


def _metrics(**others):
    names = ("loss", "top1_error", "top5_error", "learning_rate", "gradient_norm")
    return {n: jnp.float32(0.5) for n in (*names, "parameter_norm")} | others


ERRORS = {"loss": 0.5, "top1_error": 0.5, "top5_error": 0.5, "learning_rate": 0.1}


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_images_per_second_are_of_the_last_steps_without_pauses(tmp_path, clock):
    with _writer(tmp_path) as writer:
        for step in range(1, WINDOW + 51):
            clock[0] += 2.0 if step <= 50 else 0.5
            writer.train(step, _metrics())
            writer.flush()
        clock[0] += 1000  # an evaluation
        writer.resume_clock(step)
        clock[0] += 4.0
        writer.train(step + 1, _metrics())
        writer.flush()
    rates = [line["images_per_second"] for line in _lines(tmp_path)]
    assert rates[:50] == [5.0] * 50
    assert rates[WINDOW + 49] == 20.0  # the slow steps have left the window
    assert rates[-1] == 2.5


def test_a_line_has_the_named_fields(tmp_path):
    with _writer(tmp_path) as writer:
        writer.train(1, _metrics())
        writer.flush()
        errors = {"loss": 1.0, "top1_error": 0.5, "top5_error": 0.1}
        writer.validation(1, errors | {"learning_rate": 0.01, "images_per_second": 3.0})
    names = {"step", "epoch", "split", "loss", "top1_error", "top5_error", "learning_rate"}
    train, val = _lines(tmp_path)
    assert names | {"images_per_second"} == set(val)
    assert set(val) | {"gradient_norm", "parameter_norm"} == set(train)
    assert train["epoch"] == 0.2
    assert (train["split"], val["split"]) == ("train", "val")


@pytest.mark.parametrize(("num_classes", "shown"), [(5, False), (6, True)])
def test_the_terminal_shows_no_top_5_error_where_all_classes_are_among_five(
    tmp_path, capsys, num_classes, shown
):
    errors = {"top1_error": 0.5, "top5_error": 0.1}
    with _writer(tmp_path, num_classes=num_classes) as writer:
        writer.validation(1, errors | {"loss": 1.0, "learning_rate": 0.01})
    line = capsys.readouterr().err
    assert "top-1 error 50.00%, " in line
    assert ("top-5 error 10.00%, learning rate" in line) == ("top-5" in line) == shown
    assert _lines(tmp_path)[0]["top5_error"] == 0.1
    result = {"step": 7} | errors | {f"ten_crop_{name}": 0.3 for name in errors}
    last = modes._errors(result, num_classes)
    if shown:
        assert last.endswith("top-1 error 50.00%, top-5 10.00% (test crops: 30.00%, 30.00%)")
    else:
        assert last.endswith("top-1 error 50.00% (test crops: 30.00%)")


def test_the_first_step_and_every_nth_step_are_logged(tmp_path):
    with _writer(tmp_path, log_every_steps=4) as writer:
        for step in range(1, 10):
            writer.train(step, _metrics())
        writer.flush()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 4, 8]


@pytest.mark.parametrize("evaluated", [True, False])
def test_lines_of_steps_that_run_again_are_dropped_with_damaged_lines(tmp_path, evaluated):
    lines = [{"step": s, "split": "train"} for s in (1, 2, 3, 4)]
    lines.insert(2, {"step": 2, "split": "val"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    damage = b'3\nnull\n{"step": "x", "split": "train"}\n\xff\n{"step": 1, "spl'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + damage)
    with _writer(tmp_path, start_step=2, evaluated=evaluated):
        pass
    kept = lines[:3] if evaluated else lines[:2]
    assert _lines(tmp_path) == kept


def test_a_metric_that_the_step_returns_is_logged(config, folder, tmp_path, monkeypatch):
    """No list names it. Of a step that is not logged, only the checked metrics are fetched."""

    def step_with_another(*arguments, **options):
        state, found = train_step(*arguments, **options)
        return state, found | {"twice_the_loss": 2 * found["loss"]}

    def fetch(arrays):
        fetched.append(set(arrays))
        return parallel.to_host(arrays)

    fetched = []
    monkeypatch.setattr(programs, "train_step", step_with_another)
    monkeypatch.setattr("alexnet_jax.rundir.metrics.to_host", fetch)
    config.dataset.name, config.dataset.path = "folder", str(folder)
    config.dataset.data_dir = str(tmp_path)
    config.model.num_classes, config.batch_size = 2, 8
    config.num_steps, config.log_every_steps, config.eval_every_epochs = 3, 100, 100
    train_and_evaluate(config, tmp_path / "run")
    lines = {line["step"]: line for line in runs.metrics(tmp_path / "run")}
    assert list(lines) == [1, 3]
    shown = {
        number: value
        for number, tag, value in tensorboard.scalars(tmp_path / "run" / "tensorboard")
        if tag == "train/twice_the_loss"
    }
    for number, line in lines.items():
        assert line["twice_the_loss"] == pytest.approx(2 * line["loss"])
        assert shown[number] == pytest.approx(line["twice_the_loss"])
    assert fetched[0] == fetched[2] >= {"twice_the_loss", "top1_error"}
    assert fetched[1] == {"loss", "gradient_norm", "parameter_norm"}


def _values(workdir):
    """Yield (step, value) of all values in TensorBoard's files."""
    for path in sorted((workdir / "tensorboard").glob("*")):
        with path.open("rb") as file:
            while (event := tensorboard._next_event(file)) is not None:
                yield from ((event.step, value) for value in event.summary.value)


def test_tensorboard_shows_the_fields_and_at_evaluations_the_filters(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(11, 11, 3, 20)).astype(np.float32)
    for first, steps in ((0, (2, 4, 6)), (4, (6, 8))):  # the second run continues from step 4
        with _writer(tmp_path, first, evaluated=True) as writer:
            for step in steps:
                writer.validation(step, ERRORS)
                writer.filters(step, {"conv1": {"kernel": kernel}})
    values = list(_values(tmp_path))
    shown = [(step, value.image) for step, value in values if value.tag == "val/conv1"]
    assert [step for step, _ in shown] == [2, 4, 6, 8]
    with Image.open(io.BytesIO(shown[0][1].encoded_image_string)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 48 - 4, 16 * 48 - 4, 3)  # two rows, each filter enlarged four times
    one = kernel[..., 17]
    expected = np.rint(255 * (one - one.min()) / np.ptp(one))
    np.testing.assert_allclose(pixels[48:92:4, 48:92:4], expected, atol=1)
    assert {step for step, tag, _ in tensorboard.scalars(tmp_path / "tensorboard")} == {2, 4, 6, 8}

    [(_, started), *_] = [pair for pair in values if pair[1].tag.endswith("session_start_info")]
    content = HParamsPluginData.FromString(started.metadata.plugin_data.content)
    fields = content.session_start_info.hparams
    assert fields["batch_size"].number_value == 10
    assert fields["model.num_classes"].number_value == 10


def test_filters_that_are_not_finite_or_local_are_not_drawn(tmp_path):
    with _writer(tmp_path) as writer:
        writer.validation(1, ERRORS)
        writer.filters(1, {"conv1": {"kernel": np.full((3, 3, 3, 4), np.nan, np.float32)}})
        writer.filters(1, {"local1": {"kernel": np.zeros((2, 2, 27, 4), np.float32)}})
    assert not any(value.HasField("image") for _, value in _values(tmp_path))
