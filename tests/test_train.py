"""Training: the same on any number of devices, resumed where it stopped, and it learns."""

import dataclasses
import functools
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import InputError, augment, data, optim, parallel, predict, restore
from alexnet_jax import model as model_lib
from alexnet_jax.augment import statistics_of
from alexnet_jax.evaluate import evaluate_checkpoint, lowered_eval_steps, validation_metrics
from alexnet_jax.programs import cached_rows, lowered_step
from alexnet_jax.rundir import RunRecord, checkpoint, restoring
from alexnet_jax.setting import Setting
from alexnet_jax.state import (
    abstract_state,
    create_state,
    initial_state,
    seed_words,
    step_key,
)
from alexnet_jax.step import train_step
from alexnet_jax.train import train_and_evaluate
from configs import alexnet_2012_code
from tests import runs
from tests.agreement import agree, one_value
from tests.untrained import save_run


def _step_of_one_device(config, num_train=1438):
    model = model_lib.from_config(config)
    return functools.partial(train_step, model=model, config=config, num_train=num_train)


@pytest.mark.slow
def test_the_first_20_losses_do_not_depend_on_the_number_of_devices(tmp_path, data_dir):
    """Dropout and augmentation are on: their keys follow the example, not the device."""
    counts = (1, 2, 4, 8)
    processes = [
        runs.start(
            *runs.TINY,
            f"--workdir={tmp_path / str(n)}",
            f"--config.dataset.data_dir={data_dir}",
            "--config.num_steps=20",
            "--config.learning_rate=0.02",
            devices=n,
        )
        for n in counts
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    losses = [[line["loss"] for line in runs.metrics(tmp_path / str(n))] for n in counts]
    assert len(losses[0]) == 20
    assert abs(losses[0][-1] - losses[0][0]) > 1e-2  # they do change
    for number, other in zip(counts[1:], losses[1:], strict=True):
        agree(other, losses[0], rtol=2e-5, what=f"{number} devices ")
    errors = [runs.metrics(tmp_path / str(n), "val")[-1]["top1_error"] for n in counts]
    assert max(errors) - min(errors) <= 1 / 359  # one image on the border at most


def test_each_step_draws_other_crops_and_dropout(config, digits):
    sharding = parallel.Pmap()
    batch = sharding.shard(next(data.train_batches(digits, seed=0, batch_size=16)))
    step = sharding.map(_step_of_one_device(config))
    state = initial_state(config, statistics_of(digits, config.augment))
    losses = []
    for number in (0, 1, 1):
        of_number = dataclasses.replace(state, step=jnp.int32(number))
        losses.append(one_value(step(sharding.replicate(of_number), batch)[1]["loss"]))
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize("parallel_", ["pmap", "split"])
def test_one_program_serves_all_seeds(config, digits, parallel_):
    """So that the compilation cache has the programs of a second seed; what they draw differs."""
    config.parallel, config.model.groups = parallel_, 2
    setting = Setting(config, digits, parallel.sharding(config))
    programs, drawn = [], []
    for seed in (0, 2**40 + 1):
        config.seed = seed
        statistics = statistics_of(digits, config.augment)
        create = jax.jit(functools.partial(create_state, config))
        lowered = create.lower(statistics, seed_words(config))
        cached = cached_rows(setting)
        state = initial_state(config, statistics)
        step = lowered_step(setting, setting.sharding.replicate(state), cached)
        programs.append((lowered.as_text(), step.as_text()))
        words = jnp.asarray(seed_words(config))
        drawn.append(jax.random.key_data(step_key(config, jnp.int32(3), words)))
        same = jax.random.key_data(step_key(config, jnp.int32(3)))
        np.testing.assert_array_equal(drawn[-1], same)
    assert programs[0] == programs[1]
    assert (drawn[0] != drawn[1]).any()


# 64 random indices of the training set.
DIGITS = [
    1009, 815, 1316, 246, 1311, 428, 1195, 1133, 945, 144, 370, 1008, 217, 478, 564, 566, 462,
    483, 1279, 14, 735, 23, 1240, 693, 1143, 1011, 261, 1078, 416, 576, 169, 1267, 907, 77,
    1021, 1360, 1168, 165, 727, 139, 485, 1142, 732, 417, 150, 563, 1053, 713, 905, 644, 1100,
    215, 71, 1324, 468, 587, 1057, 383, 730, 778, 308, 577, 627, 1295,
]  # fmt: skip


def test_training_learns_64_digits_without_an_error(config, digits):
    config.batch_size = 64
    runs.all_layers(config.model)
    config.model.features = (16, 32, 32, 32, 32)
    config.model.hidden = (64, 64)
    config.learning_rate = 0.02
    whole = next(data.eval_batches(digits, batch_size=digits.num_train, split="train"))
    batch = {name: whole[name][DIGITS] for name in ("image", "label")}
    sharding, model = parallel.Pmap(), model_lib.from_config(config)
    step = sharding.map(_step_of_one_device(config), updates_state=True)
    state = sharding.replicate(initial_state(config, statistics_of(digits, config.augment)))
    for _ in range(250):  # with augmentation and dropout
        state, metrics = step(state, sharding.shard(batch))
        jax.block_until_ready(metrics)  # forced host devices may deadlock with many steps in flight
    crops = (batch["image"] - digits.mean_image)[:, 2:69, 2:69]
    logits = jax.jit(model.apply)({"params": sharding.unreplicate(state.params)}, crops)
    assert (np.asarray(logits).argmax(1) != batch["label"]).sum() == 0
    assert metrics["loss"][0] < 0.5


@pytest.mark.parametrize(
    "batch_size", [8, 400, *(pytest.param(n, marks=pytest.mark.slow) for n in (64, 360))]
)
def test_evaluation_sees_every_example_once(config, digits, batch_size):
    state = initial_state(config, statistics_of(digits, config.augment))
    model = model_lib.from_config(config)
    sharding = parallel.Pmap()
    config.batch_size = batch_size
    setting = Setting(config, digits, sharding)
    replicated = sharding.replicate(state)
    step = lowered_eval_steps(setting, replicated)[0].compile()
    found = validation_metrics(step, replicated, setting)

    batches = data.eval_batches(digits, batch_size=len(digits.mean_image) * 8)
    rows = [(b["image"][b["mask"]], b["label"][b["mask"]]) for b in batches]
    images, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    assert len(labels) == digits.num_val == 359
    crops = (images.astype(np.float64) - digits.mean_image)[:, 2:69, 2:69]
    logits = np.asarray(
        jax.jit(model.apply)({"params": state.params}, crops.astype(np.float32)), np.float64
    )
    order = np.argsort(-logits, axis=1, kind="stable")
    log_total = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    expected = {
        "loss": (log_total - logits[np.arange(359), labels]).mean(),
        "top1_error": (order[:, 0] != labels).mean(),
        "top5_error": (order[:, :5] != labels[:, None]).all(1).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


TEN = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]
NINE = [(y, x) for y in (0, 2, 5) for x in (0, 2, 5)]


@pytest.mark.parametrize(
    ("number", "mean_crop", "corners", "reflected"),
    [
        ("ten", "same", TEN, True),
        ("ten", "centre", TEN, True),
        ("nine", "centre", NINE, False),
    ],
)
def test_the_softmax_outputs_of_the_crops_are_averaged(
    config, digits, number, mean_crop, corners, reflected
):
    config.augment.flip, config.augment.test_crops = True, number
    config.augment.mean_crop = mean_crop
    state = initial_state(config, statistics_of(digits, config.augment))
    model = model_lib.from_config(config)
    sharding = parallel.Pmap()
    batch = next(iter(data.eval_batches(digits, batch_size=16)))
    replicated = sharding.replicate(state)
    step = lowered_eval_steps(Setting(config, digits, sharding), replicated)[1].compile()
    found = step(replicated, sharding.shard(batch))

    views = []
    mean_image = digits.mean_image.astype(np.float64)
    for y, x in corners:
        window = batch["image"][:, y : y + 67, x : x + 67].astype(np.float64)
        own_mean = mean_image[y : y + 67, x : x + 67]
        centre_mean = mean_image[2:69, 2:69]
        if mean_crop == "same":
            views.append(window - own_mean)
            views += [(window - own_mean)[:, :, ::-1]] * reflected
        else:
            views.append(window - centre_mean)
            views += [window[:, :, ::-1] - centre_mean] * reflected
    assert len(views) == (10 if number == "ten" else 9)
    apply = jax.jit(model.apply)
    logits = [apply({"params": state.params}, v.astype(np.float32)) for v in views]
    mean = np.mean([np.asarray(jax.nn.softmax(of_view), np.float64) for of_view in logits], 0)
    losses = -np.log(mean[np.arange(16), batch["label"]])
    agree(one_value(found["loss"]), losses.sum(), rtol=1e-5)
    assert found["top1_error"][0] == (mean.argmax(1) != batch["label"]).sum()


def test_the_metrics_show_the_state_of_the_plateau(pets, tmp_path):
    """An error that cannot fall divides the learning rate; the metrics say when and why."""
    pets.num_steps, pets.learning_rate = 16, 1e-9
    pets.plateau.patience, pets.plateau.min_scale = 2, 1e-2
    train_and_evaluate(pets, tmp_path)
    validation = runs.metrics(tmp_path, "val")
    assert len({line["top1_error"] for line in validation}) == 1
    best = validation[0]["top1_error"]
    assert [line["plateau_best"] for line in validation] == pytest.approx([best] * 8)
    assert [line["plateau_count"] for line in validation] == [0, 1, 0, 1, 0, 1, 0, 1]
    scales = [1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]
    assert [line["plateau_scale"] for line in validation] == pytest.approx(scales, rel=1e-5)
    # A line's rate is the one its step was taken with.
    taken_with = [1e-9 * s for s in (1, *scales[:-1])]
    assert [line["learning_rate"] for line in validation] == pytest.approx(taken_with, rel=1e-5)
    rates = {line["step"]: line["learning_rate"] for line in runs.metrics(tmp_path)}
    assert [rates[line["step"]] for line in validation] == pytest.approx(taken_with, rel=1e-5)


def test_the_step_augments_as_the_config_says(config, digits):
    """The loss is that of images augmented with the values of the released recipe, given here."""
    config.augment = alexnet_2012_code.get_config().augment
    config.augment.crop, config.augment.shared_by = 67, 4
    config.model.dropout = 0.0
    state, batch = (
        initial_state(config, statistics_of(digits, config.augment)),
        next(data.train_batches(digits, seed=0, batch_size=16)),
    )
    vectors, values = digits.eigenvectors, digits.eigenvalues
    agree(state.colour, vectors @ np.diag(np.sqrt(values)), rtol=1e-6, what="colour axes")
    sharding = parallel.Pmap()
    step = sharding.map(_step_of_one_device(config))
    _, metrics = step(sharding.replicate(state), sharding.shard(batch))

    key, _ = jax.random.split(step_key(config, state.step))
    fields = {"crop": 67, "flip": True, "shared_by": 4, "mean_crop": "centre"}
    fields = ConfigDict(fields | {"colour_std": 0.1, "colour_rule": "released"})

    @jax.jit
    def logits_of(batch):
        images = augment.random_crops(key, jnp.arange(16), batch, state.statistics, fields)
        return model_lib.from_config(config).apply({"params": state.params}, images)

    logits = logits_of(batch["image"])
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    loss = -log_p[np.arange(16), batch["label"]].mean()
    agree(one_value(metrics["loss"]), loss, rtol=1e-5, what="loss")


def test_an_epoch_after_the_last_possible_step_is_never_reached(config, digits):
    config.schedule, config.milestones = "epochs", ((2**31 - 1, "*", 0.1),)
    config.augment.colour_epochs = 2**31 - 1
    rate = jax.jit(lambda step: optim.learning_rate(config, step, 1.0, 1438))(10**9)
    assert float(rate) == pytest.approx(config.learning_rate)
    batch = data.blank_batch(digits, 16, kind="train")
    step = jax.vmap(_step_of_one_device(config), axis_name="data")
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype),
        (abstract_state(config), batch),
    )
    jax.eval_shape(step, *one)


def test_a_schedule_by_epochs_freezes_a_layer_and_ends_the_colour(config, digits):
    """Milestones and colour_epochs take effect with the first step of their epoch."""
    config.batch_size, config.schedule = 16, "epochs"
    config.milestones = ((2, "*", 0.1), (2, "conv1/*", 0.0))
    config.augment.colour_std, config.augment.colour_epochs = 1.0, 1
    config.augment.colour_rule = "released"
    sharding = parallel.Pmap()
    batch = sharding.shard(next(data.train_batches(digits, seed=0, batch_size=16)))
    step = sharding.map(_step_of_one_device(config, num_train=40))  # 2.5 steps an epoch
    state = initial_state(config, statistics_of(digits, config.augment))
    plain = config.copy_and_resolve_references()
    plain.augment.colour_std = 0.0
    plain_step = sharding.map(_step_of_one_device(plain, num_train=40))
    for number, epoch in ((2, 1), (3, 2)):
        placed = sharding.replicate(state.replace(step=jnp.int32(number)))
        after, metrics = step(placed, batch)
        _, plain_metrics = plain_step(placed, batch)
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, placed.params)
        assert moved["conv1"] == dict.fromkeys(("kernel", "bias"), epoch == 1)
        assert moved["fc5"]["kernel"]
        rate = one_value(metrics["learning_rate"])
        assert rate == pytest.approx(0.01 * (1.0 if epoch == 1 else 0.1))
        same = one_value(metrics["loss"]) == one_value(plain_metrics["loss"])
        assert same == (epoch == 2)


def test_a_finished_run_returns_its_result_and_can_be_made_longer(config, tmp_path):
    config.num_steps = 2
    finished = train_and_evaluate(config, tmp_path)
    assert train_and_evaluate(config, tmp_path) == finished
    (tmp_path / "result.json").write_text('{"step": 2}')  # damaged: rebuilt
    written = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(written.replace('"seed": 0', '"seed": 7'))  # rebuilt too
    again = train_and_evaluate(config, tmp_path)
    assert again["ten_crop_top1_error"] == finished["ten_crop_top1_error"]
    assert (tmp_path / "config.json").read_text() == written
    config.num_steps = 3
    assert train_and_evaluate(config, tmp_path)["step"] == 3
    config.num_steps = 2  # not shorter
    with pytest.raises(InputError, match="at step 3 already, beyond the 2"):
        train_and_evaluate(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 3


def test_the_best_checkpoint_is_known_while_it_is_saved(config, digits, tmp_path):
    state = initial_state(config, statistics_of(digits, config.augment))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step, error in ((1, 0.5), (2, 0.3), (3, None), (4, 0.4), (5, 0.35), (6, None)):
            record = RunRecord(validation=error and {"top1_error": error})
            checkpoints.save(step, state, record)
            assert checkpoints.best() == (1 if step == 1 else 2)
        assert checkpoints.latest() == 6
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [2, 5, 6]


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    config, digits, tmp_path, monkeypatch
):
    state = initial_state(config, statistics_of(digits, config.augment))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, RunRecord())
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match=f"cannot write {tmp_path}.* free are 0 MB"):
            checkpoints.save(2, state, RunRecord())
        assert checkpoints.latest() == 1


def test_a_run_is_not_evaluated_on_other_classes(pets, tmp_path):
    save_run(tmp_path / "run", pets)
    with pytest.raises(InputError, match="was trained on the classes 0, 1"):
        evaluate_checkpoint(tmp_path / "run", pets)


def test_a_finished_run_is_restored_evaluated_and_used(config, tmp_path):
    config.num_steps = 60
    config.learning_rate = 0.03
    config.eval_every_epochs = 1000
    result = train_and_evaluate(config, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
    ]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert result["step"] == result["best_step"] == 60
    assert result["epoch"] == pytest.approx(60 * 16 / 1438)
    assert result["device"].startswith("8 x cpu, ")
    assert result["versions"]["jax"] == jax.__version__

    evaluated = evaluate_checkpoint(tmp_path)
    assert evaluated.pop("skipped_records") == 0
    assert evaluated.pop("num_classes") == 10
    for name in evaluated.keys() - {"step"}:
        assert evaluated[name] == pytest.approx(result[name], abs=1e-9)

    model, variables, restored = restore(tmp_path)
    assert restored.to_dict() == config.to_dict()
    dataset = data.open_dataset(
        next(pathlib.Path(config.dataset.data_dir).rglob("digits-*px*[!k]"))
    )
    batch = next(iter(data.eval_batches(dataset, batch_size=8)))
    crops = (batch["image"] - variables["statistics"]["mean_image"])[:, 2:69, 2:69]
    probabilities = np.asarray(jax.nn.softmax(model.apply(variables, crops)))
    answers = predict(tmp_path, list(batch["image"]), top=3)
    for row, answer in zip(probabilities, answers, strict=True):
        best = np.argsort(-row)[:3]
        assert [name for name, _ in answer] == [dataset.class_names[i] for i in best]
        assert [p for _, p in answer] == pytest.approx(row[best], rel=1e-4)

    config.model.hidden = (32,)
    with pytest.raises(InputError, match=r"model\.hidden=\(16,\) \(now \(32,\)\)"):
        train_and_evaluate(config, tmp_path)
    with pytest.raises(InputError, match="no checkpoint of step 59; it holds 60"):
        restore(tmp_path, step=59)
    with pytest.raises(InputError, match="step='last': 'best', 'latest' or the number"):
        restore(tmp_path, step="last")
    (tmp_path / "config.json").unlink()  # a checkpoint has its own
    other = (
        r"60 is of another network: params/fc4/bias is .* \(16,\) there, the config's is .* \(32,\)"
    )
    with pytest.raises(InputError, match=other):
        train_and_evaluate(config, tmp_path)
    config.model.hidden, config.seed = (16,), 1
    with pytest.raises(InputError, match=r"seed=0 \(now 1\)"):
        train_and_evaluate(config, tmp_path)
    assert restore(tmp_path)[2].to_dict() == restored.to_dict()
    (tmp_path / "checkpoints" / "60" / "metrics" / "metrics").write_text("")
    with pytest.raises(InputError, match="checkpoints/60 cannot be restored"):
        restore(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "60" / "metrics")
    shutil.rmtree(tmp_path / "checkpoints" / "60" / "state")
    with pytest.raises(InputError, match="checkpoints/60 cannot be restored"):
        restore(tmp_path)


def test_a_checkpoint_of_eight_devices_holds_one_copy(config, finished_run):
    _, state, _ = restoring.load(finished_run)
    abstract = jax.eval_shape(lambda: create_state(config, state.statistics))
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, abstract)
    assert {d for leaf in jax.tree.leaves(state) for d in leaf.devices()} == {jax.devices()[0]}


def test_a_run_directory_is_a_path_or_a_string(config, tmp_path):
    config.num_steps = 1
    result = train_and_evaluate(config, str(tmp_path / "run"))
    assert result is not None
    assert train_and_evaluate(config, tmp_path / "run") == result


def test_a_typo_in_a_config_that_was_unlocked_is_refused_by_name(config, tmp_path):
    with config.unlocked():
        config.batchsize = 3
    with pytest.raises(InputError, match="no field 'batchsize'; did you mean 'batch_size'"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(config, tmp_path):
    config.batch_size = 12
    with pytest.raises(InputError, match="batch_size=12 cannot be divided over 8 devices.*8 or 16"):
        train_and_evaluate(config, tmp_path / "run")
    config.batch_size = 16
    config.model.num_classes = 1000
    for data_dir in (config.dataset.data_dir, str(tmp_path / "data")):  # prepared, and not yet
        config.dataset.data_dir = data_dir
        with pytest.raises(InputError, match="num_classes=1000, but 'digits' has 10 classes"):
            train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "data").rglob("*array_record*"))
    with pytest.raises(InputError, match="not a run directory"):
        restore(tmp_path)


class _Lowered:
    def compile(self, options=None):
        return options


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_only_a_gpus_evaluations_are_compiled_without_a_search(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step, *evaluations = parallel.compiled(_Lowered(), unsearched=[_Lowered(), _Lowered()])
    quick = {"xla_gpu_autotune_level": 0} if backend == "gpu" else None
    assert (step, evaluations) == (None, [quick, quick])


def test_the_option_that_leaves_the_search_out_exists(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    [double] = parallel.compiled(unsearched=[jax.jit(lambda x: 2 * x).lower(1.0)])
    assert double(3.0) == 6.0
