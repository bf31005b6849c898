"""Momentum SGD as the paper writes it, and how its learning rate falls (section 5).

Batches run on over the border of an epoch, so that an epoch need not be a whole number of steps:
when one begins or ends is said here, too.
"""

import fnmatch
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def momentum_sgd(
    learning_rate: Any, *, momentum: float, weight_decay: Any
) -> optax.GradientTransformation:
    """Return v <- momentum v - weight_decay lr w - lr g;  w <- w + v.

    The learning rate is inside the velocity (it is not applied to a trace of gradients, as
    `optax.sgd` does): after a drop the velocity keeps the size it had and decays. Where the rate is
    0 a parameter is frozen: w and v stay as they are, as in the authors' code.

    Args:
      learning_rate: a scalar, or a tree of scalars like the parameters; traced or not. The
        optimizer's state, optax.TraceState of v, does not depend on it.
      momentum: of 0 to 1.
      weight_decay: a number, or a tree of numbers like the parameters.
    """

    def init(params: optax.Params) -> optax.TraceState:
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(
        gradient: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.TraceState)

        def moved(v: Any, g: Any, w: Any, rate: Any, decay: Any) -> Any:
            return jnp.where(rate == 0, v, momentum * v - rate * (g + decay * w))

        rates, decays = _like(params, learning_rate), _like(params, weight_decay)
        velocity = jax.tree.map(moved, state.trace, gradient, params, rates, decays)
        updates = jax.tree.map(lambda v, rate: jnp.where(rate == 0, 0, v), velocity, rates)
        return updates, optax.TraceState(trace=velocity)

    return optax.GradientTransformation(init, update)


def _like(params: Any, value: Any) -> Any:
    """Return `value` for every leaf of `params`, unless it is a tree already."""
    return value if isinstance(value, dict) else jax.tree.map(lambda _: value, params)


def from_config(
    config: ConfigDict, params: Any, step: Any = 0, scale: Any = 1.0, num_train: int = 1
) -> optax.GradientTransformation:
    """Return the optimizer of `config` for `params` in training step `step`, counted from 0.

    `scale` is the plateau's, and `num_train`, the number of training examples, says which epoch the
    step is in. What the optimizer's state looks like depends on `params` alone.
    """
    return momentum_sgd(
        learning_rates(config, step, scale, num_train, params),
        momentum=config.momentum,
        weight_decay=weight_decays(config, params),
    )


def learning_rate(
    config: ConfigDict, step: Any, scale: Any, num_train: int, name: str = "*/kernel"
) -> Any:
    """Return the learning rate of the parameter `name` in training step `step`, counted from 0.

    It is `config.learning_rate` times `scale`, the plateau's, times the `config.lr_multipliers` for
    that name and the factors of the `config.milestones` for it that have been reached. A milestone
    of epoch e holds from the first step that begins after e - 1 epochs of `num_train` examples:
    epochs are counted from 1, as in the authors' code.

    Without a name, such as 'conv1/kernel', the rate of the weights: by what concerns those of all
    layers.
    """
    rate = config.learning_rate * scale
    for names, factor in config.lr_multipliers:
        if fnmatch.fnmatchcase(name, names):
            rate *= factor
    for epoch, names, factor in config.milestones:
        if fnmatch.fnmatchcase(name, names):
            reached = step >= first_step(epoch, num_train, config.batch_size)
            rate *= jnp.where(reached, factor, 1.0)
    return rate


def learning_rates(config: ConfigDict, step: Any, scale: Any, num_train: int, params: Any) -> Any:
    """Return `learning_rate` of every parameter, a tree like `params`."""
    return jax.tree.map_with_path(
        lambda path, _: learning_rate(config, step, scale, num_train, _name(path)), params
    )


def trained(config: ConfigDict, params: Any) -> Any:
    """Return `params`, constant for a gradient where `config.lr_multipliers` freezes them.

    A factor of 0 does: such a parameter keeps its value, whatever the weight decay. No gradient is
    computed for it, and none below the first layer that is trained.
    """

    def one(path: Any, w: Any) -> Any:
        name = _name(path)
        frozen = any(
            f == 0 and fnmatch.fnmatchcase(name, names) for names, f in config.lr_multipliers
        )
        return jax.lax.stop_gradient(w) if frozen else w

    return jax.tree.map_with_path(one, params)


def weight_decays(config: ConfigDict, params: Any) -> Any:
    """Return the weight decay of every parameter, a tree like `params`.

    The last of `config.weight_decays` that concerns it, or `config.weight_decay`.
    """

    def decay(path: Any, _: Any) -> float:
        name = _name(path)
        own = [d for names, d in config.weight_decays if fnmatch.fnmatchcase(name, names)]
        return [config.weight_decay, *own][-1]

    return jax.tree.map_with_path(decay, params)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def plateau(
    *, factor: float, patience: int, rtol: float, min_scale: float
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation whose state holds the scale of the learning rate.

    The arguments are the fields of `config.plateau`; `plateau_after` says what they mean.
    """
    return optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience, rtol=rtol, min_scale=min_scale
    )


# Compiled once for a run: optax's rule holds a lax.cond, which would be compiled at each call.
@functools.partial(jax.jit, static_argnames=("factor", "patience", "rtol", "min_scale"))
def plateau_after(
    state: Any, error: Any, *, factor: float, patience: int, rtol: float, min_scale: float
) -> Any:
    """Return the plateau's state after an evaluation whose validation error is `error`.

    After `patience` evaluations in a row that did not lower the best error by the relative `rtol`,
    `state.scale` is multiplied by `factor`, down to `min_scale`.
    """
    rule = plateau(factor=factor, patience=patience, rtol=rtol, min_scale=min_scale)
    _, after = rule.update({}, state, value=error)
    # After a rewind it may be below min_scale already.
    return after._replace(scale=jnp.minimum(after.scale, state.scale))


def first_step(epoch: int, num_train: int, batch_size: int) -> int:
    """Return the first step, counted from 0, that begins in `epoch`, counted from 1, or later.

    An int32: beyond its range there are no steps.
    """
    return min(math.ceil((epoch - 1) * num_train / batch_size), 2**31 - 1)


def evaluation_due(config: ConfigDict, step: int, num_train: int) -> bool:
    """Return whether `step` completes another `config.eval_every_epochs` epochs."""
    period = num_train * config.eval_every_epochs
    seen = step * config.batch_size
    return step > 0 and seen // period > (seen - config.batch_size) // period


def total_steps(config: ConfigDict, num_train: int) -> int:
    """Return `config.num_steps`, or the steps that see `config.num_epochs` epochs of examples."""
    return config.num_steps or math.ceil(config.num_epochs * num_train / config.batch_size)
