"""AlexNet on a folder of your own images: 2 to 200 classes, 100 to 100,000 images.

Source    the network of configs/alexnet.py, with He's weights, zero biases and inputs over 64.
          N(0, .01), biases of 1 and a rate of .01 are for a thousand classes and a million images;
          with few they stay at chance.
Data      `--config.dataset.path=pets` of one folder per class (docs/data.md). The number of classes
          is read from it.
Hardware  as configs/alexnet.py. On a CPU a core trains about 10 images per second;
          `--config.dataset.image_size=112 --config.augment.crop=99` is six times as fast, and
          was as good on few images.
Cost      90 epochs. 148 images took 12 minutes on two CPU cores (18 images/s); 1,000 take 1.4
          hours, and a sixth of that when smaller.
Error     top-1, one seed each, photographs of Imagenette's classes:
          17 % on 3 classes of 60 images (300 other images; of 32 held-out ones 3 were wrong);
          59 % after 4 epochs on 10 classes of 250, cut short (results/imagenette_ablations).

What to expect, from shorter runs on 99 px crops, most of them with half the width:

* 60 images per class leave chance within 5 to 10 epochs and are done after 50; 50 images of each of
  two classes, 22 to 26 % error, after 35. From then on the loss on held-out images rises (1.5 after
  90 epochs) while the error stays: do not trust the probabilities of such a network.
* 250 images of each of ten classes give 43 % after 24 epochs, still falling.
* Epochs count, not steps: batches of 16, 32 and 64 ended at 25, 21 and 17 % on the 3 classes, where
  one standard error is 2.4 points.
* The rate counts. At .01 the whole network has 58 % error after 20 epochs where .003 has 22, and 16
  after 40; with half the width .01 is as good as .003, and .03 stays at chance.
* Half the width is no better. With few images start from a trained network: configs/finetune.py.
* With 50 held-out images the error is known to 5 points or so.

More than 6,340 images or ten classes have not been tried.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = alexnet.get_config()
    config.batch_size = 32
    config.num_epochs = 90
    config.learning_rate = 0.003
    config.schedule = "epochs"  # the error on few held-out images is too noisy to steer by
    config.milestones = ((61, "*", 0.1), (81, "*", 0.1))
    config.eval_every_epochs = 5  # each saves a checkpoint of 500 MB

    config.model.num_classes = 0  # as many as the data set has
    config.model.dropout_scaling = "train"
    config.model.initializer = "he_normal"
    config.model.biases = (0.0,) * 8
    config.model.input_scale = 1 / 64

    config.dataset.name = "folder"
    return config
