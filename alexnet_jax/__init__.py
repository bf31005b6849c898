"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) in JAX."""

from alexnet_jax.errors import InputError
from alexnet_jax.host import heap
from alexnet_jax.model import AlexNet
from alexnet_jax.ops import local_response_norm, max_pool
from alexnet_jax.predict import predict
from alexnet_jax.rundir import VERSION as __version__
from alexnet_jax.rundir import restore

__all__ = [
    "AlexNet",
    "InputError",
    "__version__",
    "heap",
    "local_response_norm",
    "max_pool",
    "predict",
    "restore",
]
