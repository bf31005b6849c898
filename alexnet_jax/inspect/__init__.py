"""Looking at a network and what it answers: layer table, profile, predictions of folders."""

from alexnet_jax.inspect.predictions import write_predictions
from alexnet_jax.inspect.profile import profile
from alexnet_jax.inspect.summary import summary

__all__ = ["profile", "summary", "write_predictions"]
