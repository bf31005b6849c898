"""What the benchmark of the training step calculates; no test claims its times."""

import numpy as np
import pytest

from experiments.benchmarks import step_peers


def test_operations_agree_with_the_summary():
    """Multiply-adds of the forward pass and of both gradients; conv1 has no input gradient."""
    forward, conv1 = 1_135_256_096, 105_415_200  # run.py --mode=summary, in the README
    assert step_peers.operations() == 2 * (3 * forward - conv1)


@pytest.mark.parametrize("name", ["conv1", "fc6", "fc7"])
def test_kernels_convert_to_pytorch_and_back(name):
    shape = {"conv1": (11, 11, 3, 4), "fc6": (6 * 6 * 256, 4), "fc7": (6, 4)}[name]
    kernel = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    there = step_peers._to_torch(name, kernel)
    assert there.shape == {"conv1": (4, 3, 11, 11), "fc6": (4, 9216), "fc7": (4, 6)}[name]
    np.testing.assert_array_equal(step_peers._from_torch(name, there), kernel)


def test_fc6_reads_the_same_numbers_however_they_are_flattened():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 6, 6, 256))
    kernel = rng.standard_normal((6 * 6 * 256, 3))
    channels_first = maps.transpose(0, 3, 1, 2).reshape(2, -1)
    there = channels_first @ step_peers._to_torch("fc6", kernel).T
    np.testing.assert_allclose(there, maps.reshape(2, -1) @ kernel, rtol=1e-10)
