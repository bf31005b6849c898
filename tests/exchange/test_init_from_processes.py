"""Several processes begin with the weights of another run."""

import jax
import numpy as np
import pytest

from alexnet_jax import restore
from tests import runs
from tests.host.test_processes import ended, start_two
from tests.untrained import save_run


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_of_another_run(tmp_path, data_dir):
    """With a rate of almost 0 the run ends with what it began with."""
    save_run(tmp_path / "source", runs.tiny_config("none"))
    processes = start_two(
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={data_dir}",
        f"--config.init_from={tmp_path / 'source'}",
        "--config.num_steps=1",
        "--config.learning_rate=1e-20",
    )
    texts = [ended(process, 0) for process in processes]
    assert sum(str(text).count("loaded conv1, conv2") for text in texts) == 1
    first, last = restore(tmp_path / "source")[1], restore(tmp_path / "run")[1]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, last)))
