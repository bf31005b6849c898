"""A training set in the memory of the devices gives the same batches as reading it."""

import jax
import numpy as np
import pytest

from alexnet_jax import InputError, data, parallel
from alexnet_jax.data import device_cache
from alexnet_jax.rundir import restoring
from alexnet_jax.train import train_and_evaluate
from tests import runs


@pytest.mark.parametrize("sharding", ["pmap", pytest.param("split", marks=pytest.mark.slow)])
def test_a_run_is_the_same_to_the_bit_with_and_without_the_cache(config, tmp_path, sharding):
    """On eight devices, which do not divide the 1,438 digits, and past the end of an epoch.

    With pmap the run starts without the cache and is resumed with it.
    """
    config.parallel, config.model.groups = sharding, 2
    config.batch_size, config.num_steps = 360, 6
    train_and_evaluate(config, tmp_path / "none")
    if sharding == "pmap":
        config.num_steps = 2
        train_and_evaluate(config, tmp_path / "device")
        config.num_steps = 6
    config.dataset.cache = "device"
    train_and_evaluate(config, tmp_path / "device")
    states = [restoring.load(tmp_path / c, "latest")[1] for c in ("none", "device")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    lines = [runs.metrics(tmp_path / c) for c in ("none", "device")]
    for line in lines[0] + lines[1]:
        del line["images_per_second"]
    assert lines[0] == lines[1]


def test_each_device_holds_its_share_once(digits):
    sharding = parallel.Pmap()
    rows = sharding.shard(device_cache.cached_rows(digits, sharding.shares))
    assert rows["cached_image"].shape == (8, 180, 72, 72, 3)
    assert rows["cached_image"].dtype == np.uint8
    labels = [
        b["label"][b["mask"]] for b in data.eval_batches(digits, batch_size=64, split="train")
    ]
    np.testing.assert_array_equal(rows["cached_label"].ravel()[:1438], np.concatenate(labels))
    assert not rows["cached_image"].reshape(-1, 72, 72, 3)[1438:].any()


def test_a_set_that_does_not_fit_is_refused_with_the_sizes(config, tmp_path, monkeypatch):
    config.dataset.cache = "device"
    monkeypatch.setattr(device_cache, "free_bytes", lambda: 3e6)
    message = r"1,438 images of 72 px over 8 device\(s\) take 3 MB on each, where 3 MB are free"
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
