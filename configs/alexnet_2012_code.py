"""AlexNet on ImageNet as the authors' released code of 2012 trained it: two columns.

Source    the network `layers-145` of the source published by the Computer History Museum, whose
          logged errors are those of the paper. It differs from the paper's text, which
          configs/alexnet.py follows, in these points: crops of 224 whose last windows overhang;
          normalisation of conv1 before its ReLU and with alpha / n; a spatial norm after that of
          conv2; pooling of conv5 before its ReLU; N(0, .03) for conv3 to conv5; biases with a
          constant learning rate of .02 and no weight decay; a learning rate schedule of the weights
          by epochs; colour shifts by standard deviations; the same mean for all crops.
Data      imagenet2012: 256 px squares.
Hardware  as configs/alexnet.py. With `--config.parallel=split`, each pair of devices divides the
          network like the authors' two GPUs.
Cost      60,965,224 parameters, 0.72 G multiply-adds per image forward; 90 epochs (five to six days
          on two GTX 580 in 2012).
Error     40.664 % top-1, 18.210 % top-5 on ILSVRC-2012's validation set, ten crops, as logged by
          the authors. Not run on ImageNet yet.

`augment.shared_by` reproduces an artefact of the authors' code; 1 is better practice.
The learning rate of the biases is taken from the end state in `layers/layer-params-145.cfg`: it is
.02, where the weights have 1e-5, in every layer except conv1, where both are 0.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.lr_multipliers = (("*/bias", 2.0),)
    config.weight_decays = (("*/bias", 0.0),)
    config.schedule = "epochs"
    config.milestones = (
        (25, "*/kernel", 0.1),
        (51, "*/kernel", 0.1),
        (67, "conv1/kernel", 0.1),
        (72, "conv1/*", 0.0),  # frozen: neither decay nor momentum moves it
        (79, "*/kernel", 0.1),
    )

    config.model.groups = 2
    config.model.ceil_mode = True
    config.model.stages = (
        ("lrn", "max_pool", "relu"),
        ("relu", "lrn", "spatial_norm", "max_pool"),
        ("relu",),
        ("relu",),
        ("max_pool", "relu"),
    )
    config.model.lrn.alpha = 1e-4 / 5
    config.model.spatial_norm.update({"k": 1.0, "n": 5, "alpha": 1e-3 / 25, "beta": 0.75})
    config.model.init_stds = (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01)
    config.model.biases = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)

    config.augment.crop = 224
    config.augment.shared_by = 32
    config.augment.mean_crop = "centre"
    config.augment.colour_rule = "released"
    config.augment.colour_epochs = 66
    return config
