"""What devices send each other in a training step, read from the compiled program."""

import jax
import numpy as np
import pytest

from alexnet_jax import model as model_lib
from alexnet_jax.state import abstract_state
from experiments.benchmarks.scaling import collectives, compiled_step, modelled
from tests import runs


@pytest.fixture
def step(monkeypatch):
    """Return a function that compiles a step for some devices: (config, its collectives)."""

    def compiled(layout, devices):
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:devices])
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        config = runs.tiny_config("nowhere")
        runs.all_layers(config.model)
        config.parallel, config.model.groups = layout, 2
        return config, collectives(compiled_step(config, devices).as_text())

    return compiled


def _parameter_bytes(config):
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_state(config).params))


DEVICES = [pytest.param(2, marks=pytest.mark.slow), 4]


@pytest.mark.parametrize("devices", DEVICES)
def test_devices_exchange_the_gradient_and_three_metrics_once(step, devices):
    config, [only] = step("pmap", devices)
    assert only["kind"] == "all-reduce"
    assert only["bytes"] == _parameter_bytes(config) + 3 * 4
    assert only["group"] == list(range(devices))


@pytest.mark.parametrize("devices", DEVICES)
def test_a_pair_exchanges_the_inputs_of_layers_that_cross(step, devices):
    """Feature maps before conv3 and fc6, units after fc6 and fc7, and the gradients of all four.

    And the logits, of which each then has its own gradient; and two squares for the norms.
    """
    config, found = step("split", devices)
    rows = config.batch_size // (devices // 2)
    crop = config.augment.crop
    model = model_lib.from_config(config)
    images = np.zeros((rows, crop, crop, 3), np.float32)
    _, captured = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), images, mutable=["params", "intermediates"]
        )
    )
    crossing = ("max_pool2", "max_pool5", "dropout6", "dropout7")
    crossing = [4 * captured["intermediates"][name][0].size for name in crossing]

    def sizes(kind, group):
        return sorted(c["bytes"] for c in found if (c["kind"], c["group"]) == (kind, group))

    pair = [0, 1]
    assert sizes("all-gather", pair) == sorted([*crossing, 4 * rows * config.model.num_classes])
    assert sizes("reduce-scatter", pair) == sorted(crossing)
    assert sum(sizes("all-reduce", pair)) == 2 * 4
    if devices == 4:  # between the pairs, half the gradient
        assert sizes("all-reduce", [0, 2]) == [_parameter_bytes(config) // 2 + 3 * 4]
    assert len(found) == (10 if devices == 2 else 11)


def test_collectives_are_read_from_the_text():
    program = """
      %a = (f32[2,3]{1,0}, /*index=1*/f32[]) all-reduce(%x, %y), replica_groups={{0,1,2,3}}, to_a
      %b = bf16[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}
      %c = f32[4]{0} reduce-scatter(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
      %d = f32[4]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add
      %e = f32[4]{0} add(%x, %y)
    """
    found = [(c["kind"], c["bytes"], c["group"], c["bytes_sent"]) for c in collectives(program)]
    assert found == [
        ("all-reduce", 28, [0, 1, 2, 3], 42),
        ("all-gather", 64, [0, 1], 32),
        ("reduce-scatter", 32, [0, 2], 16),
    ]


def test_the_model_adds_the_ring_all_reduce_to_a_step():
    case = modelled("two cores, 1 GB/s:128:2.0:1", parameter_bytes=10**9)
    # Of 1 GB over two devices each sends 1 GB, over four 1.5 GB, in as many seconds.
    assert case["devices"][:3] == (1, 2, 4)
    assert case["rows_a_device_kept"][:3] == [64.0, round(256 / 3, 1), round(512 / 3.5, 1)]
    assert case["batch_kept"][:3] == [64.0, 64.0, 64.0]
