"""AlexNet on a folder of your own images: 2 to 200 classes, 100 to 100,000 images.

Source    the network of configs/alexnet.py, with He's weights, zero biases and inputs over 64.
          N(0, .01), biases of 1 and a rate of .01 are for a thousand classes and a million images;
          with few they stay at chance.
Data      `--config.dataset.path=pets` of one folder per class (docs/data.md). The number of classes
          is read from it.
Hardware  as configs/alexnet.py. On a CPU a core trains about 10 images per second;
          `--config.dataset.image_size=112 --config.augment.crop=99` is six times as fast.
Cost      90 epochs: for 1,000 images 2.5 hours on a CPU core, 25 minutes with the smaller images.
Error     ERROR
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.batch_size = 32
    config.num_epochs = 90
    config.learning_rate = 0.003
    config.schedule = "epochs"  # the error on few held-out images is too noisy to steer by
    config.milestones = ((61, "*", 0.1), (81, "*", 0.1))
    config.eval_every_epochs = 5  # each saves a checkpoint of 500 MB

    config.model.num_classes = 0  # as many as the data set has
    config.model.dropout_scaling = "train"
    config.model.initializer = "he_normal"
    config.model.biases = (0.0,) * 8
    config.model.input_scale = 1 / 64

    config.dataset.name = "folder"
    return config
