"""torchvision's `alexnet`: the one-column network of 2014, without normalization.

Source    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as
          torchvision/models/alexnet.py has it. Its training is that of PyTorch's ImageNet example:
          a rate of 0.01 divided by ten every 30 epochs, weight decay 1e-4.
Weights   AlexNet_Weights.IMAGENET1K_V1 fits (docs/weights.md): top-1 error 43.5 %, top-5 error
          20.9 % on ILSVRC-2012's validation set by torchvision's word, one crop.
Data      imagenet2012: 256 px squares, random 224 px crops (PyTorch's example crops and scales).
Hardware  as configs/alexnet.py.
Cost      61,100,840 parameters; 90 epochs.
Error     as above. Not run on ImageNet yet.

Inputs are scaled by about the mean of torchvision's standard deviations; what its channels differ
by is in conv1's kernel once weights are loaded. With crops of 223 to 254 the last feature maps are
6 x 6, and torchvision's adaptive pooling, which does not exist here, has no effect. In training it
drops inputs of fc6 and fc7; here inputs of fc7 and fc8 are dropped, as in the paper.
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
