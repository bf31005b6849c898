"""AlexNet on ImageNet as the paper's figure 2 draws it: two columns, on two devices.

Source    configs/alexnet.py, with the network divided between the devices of a pair. Each device
          holds half the feature maps and half the units. conv3 and the fully connected layers read
          both halves; normalisation stays inside a device. With
          `--config.model.cross_layers="('conv3','conv4')"`, conv4 reads both halves too.
Hardware  an even number of devices. Two devices form one pair, as in the paper. With more devices,
          the pairs share the batch. `--config.parallel=pmap` runs the same network on one device.
Cost      60,965,224 parameters, half of them per device; 0.72 G multiply-adds per image forward.
Error     The paper reports 18.2 % top-5 error for one net (ten crops). Not run on ImageNet yet.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.parallel = "split"
    config.model.groups = 2
    return config
