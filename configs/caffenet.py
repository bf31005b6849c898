"""Caffe's reference network `bvlc_reference_caffenet`: AlexNet that pools before it normalizes.

Source    BVLC, caffe/models/bvlc_reference_caffenet. Otherwise as configs/caffe_alexnet.py, with
          the paper's biases of 1.
Weights   bvlc_reference_caffenet.caffemodel fits (docs/weights.md). According to its authors, it
          has 42.6 % top-1 and 19.6 % top-5 error on ILSVRC-2012's validation set, with one crop.
Data      as configs/caffe_alexnet.py.
Hardware  as configs/alexnet.py.
Cost      60,965,224 parameters; 450,000 steps of 256 images.
Error     as above. Not run on ImageNet yet.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import caffe_alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = caffe_alexnet.get_config()
    config.model.stages = (
        ("relu", "max_pool", "lrn"),
        ("relu", "max_pool", "lrn"),
        ("relu",),
        ("relu",),
        ("relu", "max_pool"),
    )
    config.model.biases = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    return config
