"""Weights in and out: networks of earlier runs, of Caffe and of torchvision; files for others."""

from alexnet_jax.exchange.export import FORMATS, convert, export
from alexnet_jax.exchange.weights import check, initialised, load

__all__ = ["FORMATS", "check", "convert", "export", "initialised", "load"]
