"""Weights in and out: networks of earlier runs, of Caffe and of torchvision; files for others."""

from alexnet_jax.exchange.export import FORMATS, export
from alexnet_jax.exchange.weights import check, initialised, load

__all__ = ["FORMATS", "check", "export", "initialised", "load"]
