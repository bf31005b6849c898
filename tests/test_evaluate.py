"""A stop during an evaluation; test_train.py tests what an evaluation computes."""

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.evaluate import validation_metrics
from alexnet_jax.setting import Setting

BATCH = 120  # three of the 359 images


class StopAt:
    """A stop that is requested after `number` polls."""

    def __init__(self, number):
        self.left = number

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


class OneDevice:
    """A sharding that leaves batches unchanged."""

    def shard(self, batch):
        return batch


class Step:
    """Predicts the class `state` for every image."""

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    input_shardings = ((None, dict.fromkeys(("image", "label", "mask"), here)),)

    def __call__(self, state, batch):
        kept = jnp.asarray(batch["mask"], jnp.float32)
        right = jnp.asarray(batch["label"] == state) * kept
        return {"count": kept.sum(), "top1_error": (kept - right).sum()}


@pytest.fixture
def setting(config, digits):
    """Return a function from a number of polls to the setting of an evaluation that stops then."""
    config.batch_size = BATCH
    return lambda number: Setting(config, digits, OneDevice(), StopAt(number))


@pytest.mark.parametrize("number", range(4))
def test_a_stop_is_noticed_before_each_batch_and_before_waiting_for_the_last(setting, number):
    assert validation_metrics(Step(), 3, setting(number)) is None


def test_without_a_stop_every_batch_counts_once(setting, digits):
    found = validation_metrics(Step(), 3, setting(4))
    labels = [digits.records["val"].read(i, digits.mean_image.astype("uint8")) for i in range(359)]
    assert found["top1_error"] == pytest.approx(1 - labels.count(3) / 359)
