"""AlexNet on ImageNet, as the paper's text describes it: one column, one or many devices.

Source    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
          Networks", NIPS 2012. One column in place of the two of the paper (see `model.groups`).
Data      imagenet2012: 256 px squares, random 227 px crops, flips, PCA colour.
Hardware  any number of GPUs, TPU cores or CPUs that divides the batch; each holds the network.
Cost      62.4 million parameters; 1.13 G multiply-adds an image forward, about 6.5 GFLOP an image
          and training step; 90 epochs are 115 million images.
Error     the paper gives 18.2 % top-5 for one net (ten crops). Not yet reproduced here.

Every field there is stands in this file; the other recipes change some of them, and so does the
command line: `--config.batch_size=256 --config.model.dropout=0.3`. The meaning and range of each
field: alexnet_jax/fields.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the recipe, with every field there is."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128  # global: over all devices
    config.accumulate_steps = 1  # parts of a device's share, one after the other: less memory
    config.num_epochs = 90
    config.num_steps = placeholder(int)  # where given, counts instead of num_epochs
    config.dtype = "float32"
    config.parallel = "pmap"

    # v <- momentum v - weight_decay lr w - lr g;  w <- w + v
    config.learning_rate = 0.01
    config.momentum = 0.9
    config.weight_decay = 5e-4
    # Where parameters, by the names of their layer and themselves (globs), are treated otherwise:
    config.rate_factors = ()  # (("*/bias", 2.0),): factors of the learning rate
    config.weight_decays = ()  # (("*/bias", 0.0),): in place of weight_decay
    config.schedule = "plateau"  # 'epochs': the rate follows `milestones` alone
    config.milestones = ()  # ((25, "*", 0.1), ...): a factor from the 25th epoch on
    # The learning rate is multiplied by `factor` when `patience` evaluations in a row have not
    # lowered the validation error by the relative `rtol`.
    config.plateau = ConfigDict()
    config.plateau.factor = 0.1
    config.plateau.patience = 5
    config.plateau.rtol = 1e-3
    config.plateau.min_scale = 1e-3  # the paper divided three times

    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 1000
    config.log_every_steps = 1
    # Where a loss, gradient or parameter is NaN or infinite: 'stop', or 'rewind' to the last
    # checkpoint, at most `max_rewinds` times, with the learning rate divided by `rewind_divisor`.
    config.on_nan = "stop"
    config.rewind_divisor = 10.0
    config.max_rewinds = 3

    config.model = ConfigDict()
    config.model.num_classes = 1000
    config.model.groups = 1  # 2: the paper's two columns, on one device
    config.model.cross_layers = ("conv3",)  # with groups=2: the layers that read both columns
    config.model.layers = ("conv1", "conv2", "conv3", "conv4", "conv5")
    config.model.features = (96, 256, 384, 384, 256)
    config.model.kernels = (11, 5, 3, 3, 3)
    config.model.strides = (4, 1, 1, 1, 1)
    config.model.padding = (0, 2, 1, 1, 1)
    config.model.ceil_mode = False  # True: windows may overhang, as in the released code
    config.model.stages = (  # what follows each convolution, in order
        ("relu", "lrn", "max_pool"),
        ("relu", "lrn", "max_pool"),
        ("relu",),
        ("relu",),
        ("relu", "max_pool"),
    )
    config.model.hidden = (4096, 4096)
    config.model.dropout = 0.5
    config.model.dropout_scaling = "test"  # the paper's halving; "train" is that of libraries
    config.model.lrn = ConfigDict({"k": 2.0, "n": 5, "alpha": 1e-4, "beta": 0.75})
    config.model.lrn.within_groups = True  # with groups=2: windows end at the column's border
    config.model.spatial_norm = ConfigDict({"k": 1.0, "n": 5, "alpha": 4e-5, "beta": 0.75})
    config.model.pool = ConfigDict({"window": 3, "stride": 2})
    config.model.initializer = "normal"  # N(0, init_std); 'he_normal' ignores init_std
    config.model.init_std = 0.01
    config.model.init_stds = ()  # where given, one a layer, conv1 to fc8, in place of init_std
    config.model.biases = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # conv1 to fc8
    config.model.input_scale = 1.0  # N(0, .01) and LRN's alpha assume pixels of 0 to 255

    config.dataset = ConfigDict()
    config.dataset.name = "imagenet2012"
    config.dataset.path = ""  # for name='folder': holds train/<class>/* and val/<class>/*
    config.dataset.data_dir = "~/tensorflow_datasets"
    config.dataset.image_size = 256
    config.dataset.encoding = "jpeg"
    config.dataset.jpeg_quality = 95
    config.dataset.on_error = "raise"
    config.dataset.cache = "none"  # 'device': the training set lies in the devices' memory

    config.augment = ConfigDict()
    config.augment.crop = 227
    config.augment.flip = True
    config.augment.shared_by = 1  # consecutive pictures of a batch that share crop and reflection
    config.augment.mean_crop = "same"  # 'centre': of the mean image, whatever the crop
    config.augment.colour_std = 0.1
    config.augment.colour_rule = "paper"  # 'released': see augment.colour_axes
    config.augment.colour_epochs = placeholder(int)  # where given, no colour after so many epochs
    config.augment.test_crops = "ten"  # 'nine': a 3 x 3 grid of crops, unreflected
    return config
