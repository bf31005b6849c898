"""Everything a training step needs besides its batch, and everything a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
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


def create_state(config: ConfigDict, statistics: Statistics) -> TrainState:
    """Return the state before the first step: parameters drawn by `config.seed`, no velocity."""
    crop = config.augment.crop
    variables = model_lib.from_config(config).init(init_key(config), jnp.zeros((1, crop, crop, 3)))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optim.from_config(config, params).init(params),
        plateau=optim.plateau(**config.plateau).init(params),
        mean_image=jnp.asarray(statistics.mean_image, jnp.float32),
        colour=jnp.asarray(statistics.colour, jnp.float32),
    )


def initial_state(config: ConfigDict, statistics: Statistics) -> TrainState:
    """Return `create_state`, computed by one program on one device."""
    return jax.jit(lambda: create_state(config, statistics))()


def abstract_state(config: ConfigDict) -> TrainState:
    """Return the shapes and dtypes of the state as a tree of jax.ShapeDtypeStruct."""
    size = config.dataset.image_size
    zeros = Statistics(jnp.zeros((size, size, 3)), jnp.zeros((3, 3)))
    return jax.eval_shape(lambda: create_state(config, zeros))


def init_key(config: ConfigDict) -> jax.Array:
    """Return the key of the parameters' initial values."""
    return jax.random.split(jax.random.key(config.seed))[0]


def step_key(config: ConfigDict, step: jax.Array) -> jax.Array:
    """Return the key of everything random in training step `step`."""
    return jax.random.fold_in(jax.random.split(jax.random.key(config.seed))[1], step)
