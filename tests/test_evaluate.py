"""A stop while an evaluation is under way; what it computes is in test_train.py."""

import jax.numpy as jnp
import pytest

from alexnet_jax.evaluate import evaluate

BATCH = 120  # three of the 359 pictures


class StopAt:
    """A stop that is requested when `number` of the things that may be left alone are done."""

    def __init__(self, number):
        self.left = number

    def unless_requested(self, function):
        if not self.left:
            return None
        self.left -= 1
        return function()


class Whole:
    """A layout of batches as they are."""

    def shard(self, batch):
        return batch


def _step(state, batch):
    kept = jnp.asarray(batch["mask"], jnp.float32)
    right = jnp.asarray(batch["label"] == state) * kept
    return {"count": kept.sum(), "top1_error": (kept - right).sum()}


@pytest.mark.parametrize("number", range(4))
def test_a_stop_is_heard_before_each_batch_and_while_the_last_one_is_waited_for(digits, number):
    assert evaluate(_step, 3, digits, BATCH, Whole(), StopAt(number)) is None


def test_without_one_every_batch_counts_once(digits):
    found = evaluate(_step, 3, digits, BATCH, Whole(), StopAt(4))
    labels = [digits.records["val"].read(i, digits.mean_image.astype("uint8")) for i in range(359)]
    assert found["top1_error"] == pytest.approx(1 - labels.count(3) / 359)
