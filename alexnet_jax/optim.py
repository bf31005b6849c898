"""Momentum SGD as the paper writes it, and the rate that falls on a plateau (section 5)."""

import jax
import optax
from ml_collections import ConfigDict


def momentum_sgd(
    learning_rate: float | jax.Array, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return v <- momentum v - weight_decay lr w - lr g;  w <- w + v.

    The learning rate is inside the velocity (it is not applied to a trace of gradients, as
    `optax.sgd` does): after a drop the velocity keeps the size it had and decays. `learning_rate`
    may be a traced scalar; the state does not depend on it.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=momentum),
    )


def plateau(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Return the transformation whose state holds the scale of the learning rate.

    Its `update(updates, state, value=error)` is called once an evaluation with the validation
    error: after `config.patience` evaluations in a row that did not lower the best error by the
    relative `config.rtol`, `state.scale` is multiplied by `config.factor`, down to
    `config.min_scale`.
    """
    return optax.contrib.reduce_on_plateau(
        factor=config.factor,
        patience=config.patience,
        rtol=config.rtol,
        min_scale=config.min_scale,
    )
