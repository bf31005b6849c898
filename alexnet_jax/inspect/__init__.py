"""Looking at a network and what it answers: layer table, profile, predictions and errors."""

from alexnet_jax.inspect.evaluation import evaluate
from alexnet_jax.inspect.predictions import write_predictions
from alexnet_jax.inspect.profile import profile
from alexnet_jax.inspect.summary import summary

__all__ = ["evaluate", "profile", "summary", "write_predictions"]
