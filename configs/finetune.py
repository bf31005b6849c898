"""Fine-tuning: the network of another run, trained further on your own images.

Source    configs/folder.py. `init_from` is a run, a checkpoint or a file of weights; layers whose
          shapes fit are loaded, so the number of classes may differ. conv1, whose edges and colours
          serve any photographs, is frozen. What else was loaded learns at three tenths of the rate
          of fc8. A good network may want less, a weak one 1: `--config.lr_multipliers="()"`.
Data      as configs/folder.py: `--config.dataset.path=pets --config.init_from=runs/pretrained`.
Hardware  as configs/folder.py.
Cost      30 epochs. Frozen layers cost no backward pass, and neither does what is below them.
Error     55.0 ± 0.2 % top-1 on 100 images of each of ten classes, where training from scratch with
          the same steps gives 59.2 ± 3.2 (three seeds, a narrow net at 72 px, pretrained on 6,340
          photographs of dogs: docs/experiments.md). Not run at 227 px.

A linear probe trains fc8 alone, on the features of fc7:
`"--config.lr_multipliers=(('conv*',0.0),('fc[67]/*',0.0))"`. A name is a glob of LAYER/kernel and
LAYER/bias, and a parameter that several match has the product of their factors.
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
