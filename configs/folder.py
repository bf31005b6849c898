"""AlexNet for images of your own."""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.batch_size = 32
    config.num_epochs = 90
    config.learning_rate = 0.003
    config.schedule = "epochs"
    config.milestones = ((61, "*", 0.1), (81, "*", 0.1))
    config.eval_every_epochs = 5  # each saves a checkpoint of 500 MB

    config.model.num_classes = 0  # as many as the data set has
    config.model.dropout_scaling = "train"
    config.model.initializer = "he_normal"
    config.model.biases = (0.0,) * 8
    config.model.input_scale = 1 / 64

    config.dataset.name = "folder"
    return config
