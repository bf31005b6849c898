"""The training step, as each device computes it: the gradient of its rows, the mean, the update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax import augment, optim, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.optim import first_step
from alexnet_jax.state import TrainState, step_key


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: model_lib.AlexNet,
    config: ConfigDict,
    num_train: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the metrics of the batch before it.

    The function of one device, under the axis parallel.DATA. `batch` holds this device's rows:
    `image` (rows, size, size, 3) uint8 and `label` (rows,) int32, or what `lookup` makes these of,
    and `seed_words` (2,) of the state's module where one program is for all seeds. Shares are
    equal, and so are the `config.accumulate_steps` parts of each, so that means of means are means
    over the global batch. `num_train`, the number of training examples, says which epoch
    a step is in. The metrics are scalars, finite and equal on all devices; every one of them is
    logged.
    """
    rows = lookup(batch)
    rows = rows | {"id": parallel.example_ids(len(rows["label"]))}
    key = step_key(config, state.step, batch.get("seed_words"))
    augment_key, dropout_key = jax.random.split(key)
    colour_on = _colour_on(config, state.step, num_train)

    def loss(params: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = augment.random_crops(
            augment_key, rows["id"], rows["image"], state.statistics, config.augment, colour_on
        )
        rngs = {"dropout": dropout_key}
        params = optim.trained(config, params)
        logits: Any = model.apply(
            {"params": params}, images, train=True, example_ids=rows["id"], rngs=rngs
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, rows["label"])
        metrics = {"loss": losses, **errors(logits, rows["label"])}
        return losses.mean(), jax.tree.map(jnp.mean, metrics)

    gradient_and_metrics = functools.partial(jax.grad(loss, has_aux=True), state.params)
    means = _mean_over_parts(gradient_and_metrics, rows, config.accumulate_steps)
    gradient, metrics = jax.lax.pmean(means, parallel.DATA)

    schedule = state.step, state.plateau.scale, num_train
    optimizer = optim.from_config(config, state.params, *schedule)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
        "learning_rate": optim.learning_rate(config, *schedule),
        "gradient_norm": parallel.norm(gradient, model.column_axis),
        "parameter_norm": parallel.norm(state.params, model.column_axis),
    }
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state
    ), metrics


def eval_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: model_lib.AlexNet,
    config: ConfigDict,
    ten_crop: bool,
) -> dict[str, jax.Array]:
    """Return the sums over all devices of the batch's losses and errors, and its `count`.

    The function of one device, under the axis parallel.DATA. `batch` holds `image` (rows, size,
    size, 3) uint8, `label` (rows,) and `mask` (rows,), False for padding. `ten_crop` is as for
    `log_probabilities`.
    """
    network = functools.partial(model.apply, {"params": state.params})
    scores = log_probabilities(network, batch["image"], state.mean_image, config, ten_crop)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["label"])
    values = {"loss": losses, **errors(scores, batch["label"]), "count": jnp.ones_like(losses)}
    sums = {name: jnp.sum(v, where=batch["mask"]) for name, v in values.items()}
    return jax.lax.psum(sums, parallel.DATA)


def log_probabilities(
    network: Callable[[jax.Array], Any],
    images: jax.Array,
    mean_image: jax.Array,
    config: ConfigDict,
    ten_crop: bool,
) -> jax.Array:
    """Return (batch, classes) float32, by which classes are ranked in evaluation and prediction.

    Args:
      network: returns the logits of crops.
      images: (batch, size, size, 3) uint8.
      mean_image: (size, size, 3) float32.
      config: of the run.
      ten_crop: whether to take the mean of the softmax outputs of ten crops (section 4.1), or of
        those that `config.augment` asks for, five where the recipe reflects nothing; otherwise the
        centre crop is judged.
    """

    def of_crops(crops: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(network(crops))

    if not ten_crop:
        return of_crops(augment.centre_crop(images, mean_image, config.augment.crop))
    each = jax.lax.map(of_crops, augment.evaluation_crops(images, mean_image, config.augment))
    return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))


def errors(scores: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Return which predictions are wrong.

    Args:
      scores: (batch, classes), logits or probabilities.
      labels: (batch,) integers.

    Returns:
      `top1_error` and `top5_error`, each (batch,) float32 of 0 and 1: whether the label is not
      among the 1 or 5 highest scores. Of equal scores the lower class comes first.
    """
    _, best = jax.lax.top_k(scores, min(5, scores.shape[-1]))
    hits = best == labels[:, None]
    return {
        "top1_error": 1.0 - hits[:, 0].astype(jnp.float32),
        "top5_error": 1.0 - hits.any(axis=1).astype(jnp.float32),
    }


def lookup(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return `image` and `label` of this device's rows of a batch that may name `record` instead.

    Under the axis parallel.DATA. A device gives what it holds of all devices' rows, zeros for the
    others, and the sums are dealt out: bytes are moved once, and none is rounded.
    """
    if "record" not in batch:
        return {"image": batch["image"], "label": batch["label"]}
    image, label = batch["cached_image"], batch["cached_label"]
    records = jax.lax.all_gather(batch["record"], parallel.DATA, tiled=True)
    own = records - jax.lax.axis_index(parallel.DATA) * len(label)
    held = (own >= 0) & (own < len(label))

    def dealt_out(rows: jax.Array) -> jax.Array:
        mine = rows.at[own].get(mode="clip")
        mine = jnp.where(held.reshape(-1, *[1] * (rows.ndim - 1)), mine, 0)
        return jax.lax.psum_scatter(mine, parallel.DATA, tiled=True)

    return {"image": dealt_out(image), "label": dealt_out(label)}


def _mean_over_parts(function: Callable[[Any], Any], rows: Any, number: int) -> Any:
    """Return the mean of `function` over `number` equal parts of `rows`, one after the other.

    What it needs for one part is all that is held at a time, and one sum of its results.
    """
    if number == 1:
        return function(rows)
    parts = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), rows)
    first = jax.tree.map(lambda x: x[0], parts)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first))

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(part)), None

    sums, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda x: x / number, sums)


def _colour_on(config: ConfigDict, step: jax.Array, num_train: int) -> bool | jax.Array:
    """Return whether colours are shifted in `step`: not after `augment.colour_epochs`."""
    epochs = config.augment.colour_epochs
    if epochs is None:
        return True
    return step < first_step(epochs + 1, num_train, config.batch_size)
