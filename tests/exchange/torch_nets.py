"""The published networks in PyTorch, full size with random weights, against what is loaded here.

    python -m tests.exchange.torch_nets OUT.json

writes what experiments/results/exchange_torch.json holds. It needs torch and torchvision, or
PYTHONPATH to where they are.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from alexnet_jax import exchange
from alexnet_jax import model as model_lib
from configs import caffe_alexnet, caffenet, torchvision_alexnet
from tests.exchange import foreign

RECIPES = {
    "bvlc_alexnet": caffe_alexnet,
    "bvlc_reference_caffenet": caffenet,
    "torchvision": torchvision_alexnet,
}


def differences(net):
    """Return for each map of `net` the largest difference, relative to the map's largest value."""
    torch.manual_seed(0)
    config, squares = RECIPES[net].get_config(), foreign.photographs(256)
    with tempfile.TemporaryDirectory() as scratch:
        if net == "torchvision":
            path = pathlib.Path(scratch, "alexnet.safetensors")
            expected = _torchvision(path, squares)
        else:
            path = pathlib.Path(scratch, f"{net}.caffemodel")
            expected = _caffe(path, squares, norm_first=net == "bvlc_alexnet")
        variables = exchange.load(path, config)
    model, low = model_lib.from_config(config), (256 - config.augment.crop) // 2
    images = (squares - variables["statistics"]["mean_image"])[:, low : 256 - low, low : 256 - low]
    images = images[:, : config.augment.crop, : config.augment.crop]
    params = {"params": variables["params"]}
    logits, noted = jax.jit(lambda x: model.apply(params, x, mutable="intermediates"))(images)
    found = {name: np.asarray(maps[0]) for name, maps in noted["intermediates"].items()}
    found["logits"] = np.asarray(logits)
    result = {}
    for name, theirs in expected.items():
        ours = np.moveaxis(found[name], -1, 1) if found[name].ndim == 4 else found[name]
        result[name] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return result


def _torchvision(path, squares):
    """Save torchvision's own alexnet, and return its maps by our names."""
    net = torchvision.models.alexnet(weights=None).eval()
    save_file(net.state_dict(), path)
    inputs = torch.from_numpy(squares.transpose(0, 3, 1, 2).copy()).float() / 255
    crop = torchvision.transforms.functional.center_crop(inputs, 224)
    crop = torchvision.transforms.functional.normalize(
        crop, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    names = {1: "relu1", 2: "max_pool1", 4: "relu2", 5: "max_pool2", 7: "relu3", 9: "relu4"}
    names |= {11: "relu5", 12: "max_pool5"}
    maps, x = {}, crop
    with torch.no_grad():
        for i, layer in enumerate(net.features):
            x = layer(x)
            if i in names:
                maps[names[i]] = x.clone().numpy()
        maps["logits"] = net(crop).numpy()
    return maps


def _caffe(path, squares, norm_first):
    """Save random weights as a .caffemodel, and return the maps of the same net in PyTorch."""
    widths = (96, 256, 384, 384, 256), (4096, 4096), 1000
    layers = foreign.random_layers(*widths, groups=2)
    path.write_bytes(foreign.caffemodel(layers, v1=norm_first, legacy=norm_first))
    means = np.array([104.00698793, 116.66876762, 122.67891434])
    inputs = (squares[..., ::-1] - means)[:, 14:241, 14:241].transpose(0, 3, 1, 2)  # BGR
    x, maps = torch.from_numpy(inputs.copy()).float(), {}
    norm, pool = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), nn.MaxPool2d(3, 2, ceil_mode=True)
    order = {"lrn": norm, "max_pool": pool} if norm_first else {"max_pool": pool, "lrn": norm}
    for i, (name, (stride, padding)) in enumerate(foreign.CONVOLUTIONS.items(), start=1):
        weight, bias = map(torch.from_numpy, layers[name])
        groups = 2 if name in foreign.GROUPED else 1
        x = torch.relu(nn.functional.conv2d(x, weight, bias, stride, padding, groups=groups))
        maps[f"relu{i}"] = x.numpy()
        for stage, module in (order if i <= 2 else {"max_pool": pool} if i == 5 else {}).items():
            x = module(x)
            maps[f"{stage}{i}"] = x.numpy()
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = nn.functional.linear(x, *map(torch.from_numpy, layers[name]))
        if name != "fc8":
            x = torch.relu(x)
        maps["logits" if name == "fc8" else f"relu{name[-1]}"] = x.numpy()
    return maps


if __name__ == "__main__":
    found = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    found |= {"jax": jax.__version__, "images": "scikit-learn's two sample photographs"}
    found |= {"largest_relative_difference": {net: differences(net) for net in RECIPES}}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
