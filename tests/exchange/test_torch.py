"""The published networks at full size, computed by PyTorch; where that is installed."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["bvlc_alexnet", "bvlc_reference_caffenet", "torchvision"])
def test_all_maps_and_logits_agree_with_pytorch(net):
    from tests.exchange.torch_nets import differences

    found = differences(net)
    assert len(found) >= 9
    assert max(found.values()) <= 1e-4, found
