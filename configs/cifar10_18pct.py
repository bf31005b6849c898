"""Krizhevsky's CIFAR-10 net "18 %": cifar10_80sec's convolutions with norms, and one dense layer.

Source    Krizhevsky's cuda-convnet, `layers-18pct`: a spatial norm after each of the first two
          pools, and one fully connected layer.
Data      as cifar10_80sec.
Hardware  a CPU is enough.
Cost      89,578 parameters, 12.3 M multiply-adds per image forward; 140 epochs.
Error     18 % published; 17.9 ± 0.2 % here (mean and standard deviation of three seeds).
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import cifar10_80sec


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = cifar10_80sec.get_config()
    config.weight_decays = (("fc*", 1.0), ("*/bias", 0.0))
    config.num_epochs = 140
    config.milestones = ((121, "*", 0.1), (131, "*", 0.1))

    config.model.stages = (
        ("max_pool", "relu", "spatial_norm"),
        ("relu", "avg_pool", "spatial_norm"),
        ("relu", "avg_pool"),
    )
    config.model.spatial_norm.update({"k": 1.0, "n": 3, "alpha": 5e-5 / 9, "beta": 0.75})
    config.model.hidden = ()
    config.model.init_stds = (0.0001, 0.01, 0.01, 0.01)
    config.model.biases = (0.0,) * 4
    return config
