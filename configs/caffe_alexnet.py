"""AlexNet from Caffe's model zoo: the network and the training of `bvlc_alexnet`.

Source    BVLC, caffe/models/bvlc_alexnet: two groups, local response normalization with k = 1 and
          alpha / n over both groups, biases of 0.1 instead of the paper's 1, no colour shifts,
          biases with twice the learning rate and no weight decay, and a learning rate that is
          divided by ten every 100,000 steps.
Weights   bvlc_alexnet.caffemodel fits (docs/weights.md). According to its authors, it has 42.9 %
          top-1 and 19.8 % top-5 error on ILSVRC-2012's validation set, with one crop.
Data      imagenet2012: 256 px squares, random 227 px crops. Caffe warps images to squares; here the
          centre is cropped.
Hardware  as configs/alexnet.py.
Cost      60,965,224 parameters; 450,000 steps of 256 images.
Error     as above. Not run on ImageNet yet.

Caffe's pooling rounds sizes up and its convolutions round them down. With crops of 227, no size
needs rounding (55, 27, 13, 6), and `model.ceil_mode` has no effect.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.batch_size = 256
    config.num_steps = 450_000
    config.lr_multipliers = (("*/bias", 2.0),)
    config.weight_decays = (("*/bias", 0.0),)
    config.schedule = "epochs"  # of 5,005 steps
    config.milestones = ((21, "*", 0.1), (41, "*", 0.1), (61, "*", 0.1), (81, "*", 0.1))

    config.model.groups = 2
    config.model.dropout_scaling = "train"
    config.model.lrn.update({"k": 1.0, "n": 5, "alpha": 1e-4 / 5, "beta": 0.75})
    config.model.lrn.within_groups = False
    config.model.init_stds = (0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01)
    config.model.biases = (0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0)
    config.augment.colour_std = 0.0
    return config
