"""The four-layer CIFAR-10 net of the paper's figure 1: ReLU, or tanh, without regularisation.

Source    figure 1 says no more than "a four-layer convolutional neural network", "no regularisation
          of any kind" and a learning rate chosen for each net. Our choice: three convolutions, each
          with an overlapping max pool, and the softmax layer; a constant rate, momentum .9. He's
          initial weights and pixels over 64 (a standard deviation of 1) for both: with pixels of
          0 to 255 every tanh of conv1 would be saturated.
Data      as cifar10_80sec: no crops, no reflections.
Hardware  a CPU will do.
Cost      89,578 parameters, 12.3 M multiply-adds an image forward.
Error     figure 1: 25 % training error after about 6 epochs with ReLU, 36 with tanh.

With tanh: `--config.model.stages="(('tanh','max_pool'),)*3"` written out. experiments/figure1.py
chooses the rates and compares the two.
"""

from ml_collections import ConfigDict

from configs import cifar10_80sec


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = cifar10_80sec.get_config()
    config.learning_rate = 0.01
    config.rate_factors = ()
    config.weight_decay = 0.0
    config.weight_decays = ()
    config.num_epochs = 60
    config.milestones = ()
    config.eval_every_epochs = 10
    config.checkpoint_every_steps = 400

    config.model.stages = (("relu", "max_pool"),) * 3
    config.model.hidden = ()
    config.model.initializer = "he_normal"
    config.model.init_stds = ()
    config.model.biases = (0.0,) * 4
    config.model.input_scale = 1 / 64
    return config
