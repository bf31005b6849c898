"""AlexNet on ImageNet, as the paper's text describes it: one column, one or many devices.

Source    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
          Networks", NIPS 2012. One column instead of the paper's two (see `model.groups`).
Data      imagenet2012: 256 px squares, random 227 px crops, flips, PCA colour shifts.
Hardware  any number of GPUs, TPU cores or CPUs that divides the batch size. Each device holds the
          whole network.
Cost      62.4 million parameters; 1.14 G multiply-adds per image forward, 6.6 GFLOP per image
          and training step; 90 epochs are 115 million images.
Error     The paper reports 18.2 % top-5 error for one net (ten crops). This recipe has not been run
          on ImageNet yet.
          On 6,340 photographs of ten dog breeds, with only the number of classes changed, the
          validation top-1 error was 66, 54, 46, 43, 39, 41, 42, 39, 42 % after every ten epochs
          (seen once, on an H200, 227 px). It is lowest after about 50 of the 90 epochs. A
          difference of 3 points between two checkpoints is not significant.
          The network learns from N(0, .01) weights at this input size. With smaller crops it stays
          at chance; use He's weights, biases of 0 and `model.input_scale=0.015625` there. Without
          LRN, some nets did not learn at all at learning rates of .003 and .01
          (docs/experiments.md). Dropout slows the first epochs, so a run of a few epochs is better
          without it.

This file sets every field. The other recipes change some of them. The command line can override any
field: `--config.batch_size=256 --config.model.dropout=0.3`. `python run.py --help` and
alexnet_jax/fields.py describe the meaning and the valid values of each field.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the recipe, with every field that exists."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128
    config.accumulate_steps = 1
    config.num_epochs = 90
    config.num_steps = placeholder(int)
    config.init_from = ""  # such as the directory of another run
    config.dtype = "float32"
    config.fused_pooling = False
    config.parallel = "pmap"

    config.learning_rate = 0.01
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.lr_multipliers = ()  # such as (("*/bias", 2.0),)
    config.weight_decays = ()  # such as (("*/bias", 0.0),)
    config.schedule = "plateau"
    config.milestones = ()  # such as ((25, "*", 0.1),): from the 25th epoch on
    config.plateau = ConfigDict()
    config.plateau.factor = 0.1
    config.plateau.patience = 5
    config.plateau.rtol = 1e-3
    config.plateau.min_scale = 1e-3  # the paper divided three times

    config.eval_every_epochs = 1
    config.checkpoint_every_steps = 1000
    config.checkpoint_keep = 2
    config.log_every_steps = 1
    config.on_nan = "stop"
    config.rewind_divisor = 10.0
    config.max_rewinds = 3

    config.model = ConfigDict()
    config.model.num_classes = 1000
    config.model.groups = 1  # the paper has 2
    config.model.cross_layers = ("conv3",)
    config.model.layers = ("conv1", "conv2", "conv3", "conv4", "conv5")
    config.model.features = (96, 256, 384, 384, 256)
    config.model.kernels = (11, 5, 3, 3, 3)
    config.model.strides = (4, 1, 1, 1, 1)
    config.model.padding = (0, 2, 1, 1, 1)
    config.model.ceil_mode = False
    config.model.stages = (
        ("relu", "lrn", "max_pool"),
        ("relu", "lrn", "max_pool"),
        ("relu",),
        ("relu",),
        ("relu", "max_pool"),
    )
    config.model.hidden = (4096, 4096)
    config.model.dropout = 0.5
    config.model.dropout_scaling = "test"  # as in the paper; libraries do "train"
    config.model.lrn = ConfigDict({"k": 2.0, "n": 5, "alpha": 1e-4, "beta": 0.75})
    config.model.lrn.within_groups = True
    config.model.spatial_norm = ConfigDict({"k": 1.0, "n": 5, "alpha": 4e-5, "beta": 0.75})
    config.model.pool = ConfigDict({"window": 3, "stride": 2})
    config.model.initializer = "normal"
    config.model.init_std = 0.01
    config.model.init_stds = ()
    config.model.biases = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # conv1 to fc8
    config.model.input_scale = 1.0  # N(0, .01) and LRN's alpha assume pixels of 0 to 255

    config.dataset = ConfigDict()
    config.dataset.name = "imagenet2012"
    config.dataset.path = ""
    config.dataset.val_fraction = 0.2  # of a folder without train/ and val/
    config.dataset.data_dir = "~/tensorflow_datasets"
    config.dataset.image_size = 256
    config.dataset.encoding = "jpeg"
    config.dataset.jpeg_quality = 95
    config.dataset.on_error = "raise"
    config.dataset.cache = "none"

    config.augment = ConfigDict()
    config.augment.crop = 227
    config.augment.flip = True
    config.augment.shared_by = 1
    config.augment.mean_crop = "same"
    config.augment.colour_std = 0.1
    config.augment.colour_rule = "paper"
    config.augment.colour_epochs = placeholder(int)
    config.augment.test_crops = "ten"
    return config.lock()  # an unknown field raises AttributeError
