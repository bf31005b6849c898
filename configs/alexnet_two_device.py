"""AlexNet on ImageNet as the paper's figure 2 draws it: two columns, on two devices.

Source    configs/alexnet.py, with the network divided between the devices of a pair: each holds
          half the feature maps and half the units. conv3 and the fully connected layers read both
          halves; normalisation stays inside a device.
          `--config.model.cross_layers="('conv3','conv4')"` lets conv4 read both too.
Hardware  an even number of devices; two make one pair, as in the paper, and of more the pairs share
          the batch. On one device: `--config.parallel=pmap`, the same network.
Cost      60,965,224 parameters, half of them per device; 0.72 G multiply-adds per image forward.
Error     the paper gives 18.2 % top-5 error for one net (ten crops). Not run on ImageNet yet.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.parallel = "split"
    config.model.groups = 2
    return config
