"""Making a prepared data set: from a folder of images, scikit-learn's digits or a tfds name."""

from alexnet_jax.prepare.stored_set import check_classes, prepare

__all__ = ["check_classes", "prepare"]
