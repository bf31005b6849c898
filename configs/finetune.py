"""Fine-tuning: another run's network, trained further on images of your own.

    python run.py --config=configs/finetune.py --workdir=runs/pets --config.dataset.path=pets \
      --config.init_from=runs/pretrained
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import folder


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = folder.get_config()
    config.init_from = "runs/pretrained"
    config.num_epochs = 30
    config.milestones = ((21, "*", 0.1),)
    config.lr_multipliers = (("conv1/*", 0.0), ("conv[2-5]/*", 0.1), ("fc[67]/*", 0.1))
    return config
