"""The training step, as each device computes it: the gradient of its rows, the mean, the update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax import augment, cache, optim, parallel
from alexnet_jax import model as model_lib
from alexnet_jax.epochs import first_step
from alexnet_jax.evaluate import errors
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
    `image` (rows, size, size, 3) uint8 and `label` (rows,) int32, or what cache.lookup makes these
    of. Shares are equal, and so are the `config.accumulate_steps` parts of each, so that means of
    means are means over the global batch. `num_train`, the number of training examples, says which
    epoch a step is in. The metrics are scalars, finite and equal on all devices; every one of them
    is logged.
    """
    rows = cache.lookup(batch)
    rows = rows | {"id": parallel.example_ids(len(rows["label"]))}
    augment_key, dropout_key = jax.random.split(step_key(config, state.step))
    colour_std = _colour_std(config, state.step, num_train)

    def loss(params: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = augment.random_crops(
            augment_key,
            rows["id"],
            rows["image"],
            state.mean_image,
            state.colour,
            crop=config.augment.crop,
            flip=config.augment.flip,
            shared_by=config.augment.shared_by,
            mean_crop=config.augment.mean_crop,
            colour_std=colour_std,
            colour_rule=config.augment.colour_rule,
        )
        rngs = {"dropout": dropout_key}
        logits: Any = model.apply(
            {"params": params}, images, train=True, example_ids=rows["id"], rngs=rngs
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, rows["label"])
        metrics = {"loss": losses, **errors(logits, rows["label"])}
        return losses.mean(), jax.tree.map(jnp.mean, metrics)

    gradient_and_metrics = functools.partial(jax.grad(loss, has_aux=True), state.params)
    means = _mean_over_parts(gradient_and_metrics, rows, config.accumulate_steps)
    gradient, metrics = jax.lax.pmean(means, parallel.DATA)

    scale = state.plateau.scale
    optimizer = optim.momentum_sgd(
        optim.learning_rates(config, state.step, scale, num_train, state.params),
        momentum=config.momentum,
        weight_decay=optim.weight_decays(config, state.params),
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
        "learning_rate": optim.learning_rate(config, state.step, scale, num_train),
        "gradient_norm": parallel.norm(gradient, model.column_axis),
        "parameter_norm": parallel.norm(state.params, model.column_axis),
    }
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state
    ), metrics


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


def _colour_std(config: ConfigDict, step: jax.Array, num_train: int) -> float | jax.Array:
    """Return `augment.colour_std`, or 0 after `augment.colour_epochs`."""
    std, epochs = config.augment.colour_std, config.augment.colour_epochs
    if epochs is None or std == 0:
        return std
    return jnp.where(step < first_step(epochs + 1, num_train, config.batch_size), std, 0.0)
