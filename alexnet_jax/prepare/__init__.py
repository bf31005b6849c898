"""Preparing a stored data set from a folder of images, scikit-learn's digits or a tfds name."""

from alexnet_jax.prepare.images import EXTENSIONS, FORMATS, load_image
from alexnet_jax.prepare.sources import HELD_OUT, open_source
from alexnet_jax.prepare.stored_set import check_classes, is_prepared, prepare

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "HELD_OUT",
    "check_classes",
    "is_prepared",
    "load_image",
    "open_source",
    "prepare",
]
