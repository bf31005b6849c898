"""Krizhevsky's CIFAR-10 net "11 %": cifar10_13pct with local response normalisation.

Source    Krizhevsky's cuda-convnet, `layers-conv-local-11pct`.
Data      as cifar10_13pct. Krizhevsky trained for 350 epochs on four fifths of the training images,
          used the rest to decide when to stop, and then trained on all of them. Here all images are
          used from the start.
Hardware  a GPU, because of the number of epochs.
Cost      2,112,970 parameters, 19.5 M multiply-adds per image forward; 520 epochs.
Error     11 % published; not run yet.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import cifar10_13pct


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = cifar10_13pct.get_config()
    config.weight_decays = (("conv*", 0.0), ("fc*", 0.01), ("*/bias", 0.0))
    config.model.features = (64, 64, 64, 32)
    config.model.stages = (
        ("relu", "max_pool", "lrn"),
        ("relu", "lrn", "max_pool"),
        ("relu",),
        ("relu",),
    )
    config.model.lrn.update({"k": 1.0, "n": 9, "alpha": 1e-3 / 9, "beta": 0.75})
    return config
