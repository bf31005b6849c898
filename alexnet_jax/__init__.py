"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012) in JAX.

`train`, `evaluate` and `predict` are functions here, and modules of the same names below: their
other contents are imported as `from alexnet_jax.train import train_and_evaluate`.
"""

from alexnet_jax.errors import InputError
from alexnet_jax.host import heap
from alexnet_jax.inspect import evaluate
from alexnet_jax.model import AlexNet
from alexnet_jax.ops import local_response_norm, max_pool
from alexnet_jax.predict import features, predict, preprocess
from alexnet_jax.rundir import VERSION as __version__
from alexnet_jax.rundir import restore
from alexnet_jax.train import train

__all__ = [
    "AlexNet",
    "InputError",
    "__version__",
    "evaluate",
    "features",
    "heap",
    "local_response_norm",
    "max_pool",
    "predict",
    "preprocess",
    "restore",
    "train",
]
