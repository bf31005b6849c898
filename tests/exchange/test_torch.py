"""The published networks at full size, computed by PyTorch; where that is installed."""

import numpy as np
import pytest

from alexnet_jax import predict
from tests.exchange import foreign

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["bvlc_alexnet", "bvlc_reference_caffenet", "torchvision"])
def test_all_maps_and_logits_agree_with_pytorch(net):
    from tests.exchange.torch_nets import differences

    found = differences(net)
    assert len(found) >= 9
    assert max(found.values()) <= 1e-4, found


@pytest.mark.slow
def test_the_lines_for_torchvision_make_a_file_that_names_classes(tmp_path, monkeypatch):
    """Of docs/weights.md: from the pickle to the answers of torchvision's own class."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = torchvision.models.alexnet(weights=None).eval()
    with torch.no_grad():
        net.classifier[6].weight *= 30  # else all classes are about as probable
    torch.save(net.state_dict(), "alexnet-owt-7be5be79.pth")
    exec(foreign.block_of_docs("torch.load("), {})
    exec(foreign.block_of_docs('"torchvision.safetensors"'), {})

    squares = foreign.photographs(256)
    transforms = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        inputs = transforms(torch.from_numpy(squares.transpose(0, 3, 1, 2).copy()))
        expected = torch.softmax(net(inputs), 1).numpy()
    names = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
    for row, answer in zip(expected, predict("torchvision.safetensors", squares), strict=True):
        best = np.argsort(-row)[:5]
        assert [name for name, _ in answer] == [names[i] for i in best]
        np.testing.assert_allclose([p for _, p in answer], row[best], rtol=1e-3)
