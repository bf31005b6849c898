"""Fine-tuning: the network of another run, trained further on your own images.

Source    configs/folder.py. `init_from` is a run, a checkpoint or a weights file. Layers whose
          shapes match are loaded, so the number of classes may differ. conv1 is frozen, because its
          edges and colours are useful for any photographs. conv2 to fc7 train at 0.3 times the
          learning rate of fc8. A good network may need a smaller factor, a weak one a factor of 1:
          `--config.lr_multipliers="()"`, which trains conv1 as well.
Data      as configs/folder.py: `--config.dataset.path=pets --config.init_from=runs/pretrained`.
Hardware  as configs/folder.py.
Cost      30 epochs. Frozen layers need no backward pass, and neither do the layers below them.
Error     55.0 ± 0.2 % top-1 with 100 images of each of ten classes. Training from scratch with the
          same number of steps gives 59.2 ± 3.2 % (three seeds, a narrow net at 72 px, pretrained on
          6,340 photographs of dogs; docs/experiments.md). Not run at 227 px.

A linear probe trains only fc8, on the features of fc7:
`"--config.lr_multipliers=(('conv*',0.0),('fc[67]/*',0.0))"`. A name is a glob that is matched with
LAYER/kernel and LAYER/bias. If several globs match a parameter, their factors are multiplied.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import folder


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = folder.get_config()
    config.init_from = "runs/pretrained"
    config.num_epochs = 30
    config.milestones = ((21, "*", 0.1),)
    config.lr_multipliers = (("conv1/*", 0.0), ("conv[2-5]/*", 0.3), ("fc[67]/*", 0.3))
    return config
