"""torchvision's `alexnet`: the one-column network of 2014, without normalization.

Source    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as in
          torchvision/models/alexnet.py. It is trained as in PyTorch's ImageNet example: a learning
          rate of 0.01, divided by ten every 30 epochs, and a weight decay of 1e-4.
Weights   AlexNet_Weights.IMAGENET1K_V1 fits (docs/weights.md). According to torchvision, it has
          43.5 % top-1 and 20.9 % top-5 error on ILSVRC-2012's validation set, with one crop.
Data      imagenet2012: 256 px squares, random 224 px crops (PyTorch's example crops and scales).
Hardware  as configs/alexnet.py.
Cost      61,100,840 parameters; 90 epochs.
Error     as above. Not run on ImageNet yet.

Inputs are divided by about the mean of torchvision's standard deviations. When weights are loaded,
the differences between its channels go into the kernel of conv1. torchvision's adaptive pooling
does not exist here. With crops of 223 to 254 it has no effect, because the last feature maps are
6 x 6. In training, torchvision drops inputs of fc6 and fc7; here inputs of fc7 and fc8 are dropped,
as in the paper.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.batch_size = 256
    config.weight_decay = 1e-4
    config.schedule = "epochs"
    config.milestones = ((31, "*", 0.1), (61, "*", 0.1))

    config.model.features = (64, 192, 384, 256, 256)
    config.model.padding = (2, 2, 1, 1, 1)
    config.model.stages = (
        ("relu", "max_pool"),
        ("relu", "max_pool"),
        ("relu",),
        ("relu",),
        ("relu", "max_pool"),
    )
    config.model.dropout_scaling = "train"
    config.model.initializer = "he_normal"
    config.model.biases = (0.0,) * 8
    config.model.input_scale = 1 / (255 * 0.226)
    config.augment.crop = 224
    config.augment.colour_std = 0.0
    return config
