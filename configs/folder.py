"""AlexNet on a folder of your own images: 2 to 200 classes, 100 to 100,000 images.

Source    the network of configs/alexnet.py, with He's weights, zero biases and inputs divided by
          64. N(0, .01) weights, biases of 1 and a learning rate of .01 are for a thousand classes
          and a million images. With few classes and images, such a network stays at chance.
Data      `--config.dataset.path=pets`, a folder with one folder per class (docs/data.md). The
          number of classes is read from it.
Hardware  as configs/alexnet.py. A CPU core trains on about 10 images per second.
          `--config.dataset.image_size=112 --config.augment.crop=99` is six times as fast, and
          was as accurate on few images.
Cost      90 epochs. 148 images took 12 minutes on two CPU cores (18 images/s). 1,000 images take
          1.4 hours, or a sixth of that with the smaller image size.
Error     top-1, one seed each, photographs of Imagenette's classes:
          17 % on 3 classes of 60 images (300 other images; of 32 held-out ones 3 were wrong);
          59 % after 4 epochs on 10 classes of 250, cut short (results/imagenette_ablations).

The following is from shorter runs on 99 px crops, most of them with half the width:

* With 60 images per class, the network leaves chance within 5 to 10 epochs and stops improving
  after 50. With 50 images of each of two classes, it reaches 22 to 26 % error and stops improving
  after 35. From then on, the loss on held-out images rises (1.5 after 90 epochs) while the error
  stays the same. Do not trust the probabilities of such a network.
* 250 images of each of ten classes give 43 % error after 24 epochs, and the error is still falling.
* The number of epochs matters, not the number of steps: batch sizes of 16, 32 and 64 ended at 25,
  21 and 17 % on the 3 classes, where one standard error is 2.4 points.
* The learning rate matters. At .01 the full-width network has 58 % error after 20 epochs; at .003
  it has 22 %, and 16 % after 40. With half the width, .01 is as good as .003, and .03 stays at
  chance.
* Half the width is not better. With few images, start from a trained network: configs/finetune.py.
* With 50 held-out images, the error is accurate to about 5 points.

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
