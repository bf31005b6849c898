"""Everything a training step needs besides its batch, and everything a checkpoint holds."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import model as model_lib
from alexnet_jax import optim
from alexnet_jax.augment import Statistics


@flax.struct.dataclass
class TrainState:
    """State after `step` updates.

    PRNG keys are not stored: they are functions of the config's seed and the step.
    """

    step: jax.Array  # () int32
    params: Any
    opt_state: optax.OptState  # holds the velocity
    plateau: Any  # optax's ReduceLROnPlateauState; its `scale` multiplies the learning rate
    mean_image: jax.Array  # (size, size, 3) float32, of the training set
    colour: jax.Array  # (3, 3) float32, augment.colour_axes of the training set

    @property
    def statistics(self) -> Statistics:
        """The two arrays of the training set."""
        return Statistics(self.mean_image, self.colour)


def create_state(
    config: ConfigDict, statistics: Statistics, words: jax.Array | None = None
) -> TrainState:
    """Return the state before the first step: parameters drawn by the seed, no velocity.

    `words` as for `step_key`.
    """
    crop, (key, _) = config.augment.crop, jax.random.split(_seed_key(config, words))
    params = model_lib.from_config(config).init(key, jnp.zeros((1, crop, crop, 3)))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optim.from_config(config, params).init(params),
        plateau=optim.plateau(**config.plateau).init(params),
        mean_image=jnp.asarray(statistics.mean_image, jnp.float32),
        colour=jnp.asarray(statistics.colour, jnp.float32),
    )


def initial_state(config: ConfigDict, statistics: Statistics) -> TrainState:
    """Return `create_state`, computed by one program on one device, the same for all seeds."""
    return jax.jit(functools.partial(create_state, config))(statistics, seed_words(config))


def abstract_state(config: ConfigDict) -> TrainState:
    """Return the shapes and dtypes of the state as a tree of jax.ShapeDtypeStruct."""
    size = config.dataset.image_size
    zeros = Statistics(jnp.zeros((size, size, 3)), jnp.zeros((3, 3)))
    return jax.eval_shape(lambda: create_state(config, zeros))


def seed_words(config: ConfigDict) -> np.ndarray:
    """Return the key of `config.seed` as (2,) uint32, an input of programs for any seed."""
    return np.asarray(jax.random.key_data(jax.random.key(config.seed)))


def step_key(config: ConfigDict, step: jax.Array, words: jax.Array | None = None) -> jax.Array:
    """Return the key of everything random in training step `step`.

    It is derived from `words`, the `seed_words`, or without them from `config.seed`, which then is
    a constant of the program.
    """
    return jax.random.fold_in(jax.random.split(_seed_key(config, words))[1], step)


def _seed_key(config: ConfigDict, words: jax.Array | None) -> jax.Array:
    return jax.random.key(config.seed) if words is None else jax.random.wrap_key_data(words)
