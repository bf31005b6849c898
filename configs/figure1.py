"""The four-layer CIFAR-10 net of the paper's figure 1: ReLU, or tanh, without regularisation.

Source    The paper only says "a four-layer convolutional neural network", "no regularisation of any
          kind" and that the learning rate was chosen for each net. Ours is the four-layer net that
          Krizhevsky published at the time, cifar10_18pct, without its norms and weight decay. It
          keeps the initial weights and the pixels of 0 to 255. The learning rate is constant.
Data      as cifar10_80sec: no crops, no reflections.
Hardware  a CPU is enough.
Cost      89,578 parameters, 12.3 M multiply-adds per image forward; about half a minute per epoch
          on two CPU cores.
Error     figure 1: 25 % training error after about 6 epochs with ReLU, 36 with tanh. Here,
          three seeds: 6.1 +- 0.1 at rate .003, and 39.8 +- 1.5 with tanh at .01.

experiments/paper/figure1.py replaces ReLU by tanh, chooses the learning rates and compares the two.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import cifar10_18pct


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = cifar10_18pct.get_config()
    config.lr_multipliers = ()
    config.weight_decay = 0.0
    config.weight_decays = ()
    config.num_epochs = 60
    config.milestones = ()
    config.eval_every_epochs = 10
    config.checkpoint_every_steps = 400

    config.model.stages = (("max_pool", "relu"), ("relu", "avg_pool"), ("relu", "avg_pool"))
    return config
