"""What one process of step.py is: a peer, which takes training steps of the same network."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PEERS = (
    "ours",
    "naive",
    "torch",
    "torch_compile",
    "torch_compile_heap",  # on a CPU
    "torch_compile_graphs",  # on a GPU
)
SIDE, CLASSES = 227, 1000
FEATURES, KERNELS, STRIDES = (96, 256, 384, 384, 256), (11, 5, 3, 3, 3), (4, 1, 1, 1, 1)
PADDING, HIDDEN = (0, 2, 1, 1, 1), (4096, 4096)
NORMALISED, POOLED = (0, 1), (0, 1, 4)  # convolutions that are followed by LRN, by pooling
K, N, ALPHA, BETA = 2.0, 5, 1e-4, 0.75
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
CHECKED = 32  # images on which gradients are compared: few, for the memory of steps is measured


def operations() -> float:
    """Return the floating-point operations of a training step on one image."""
    side, channels, total = SIDE, 3, 0.0
    for i, width in enumerate(FEATURES):
        side = (side + 2 * PADDING[i] - KERNELS[i]) // STRIDES[i] + 1
        forward = 2.0 * side * side * width * KERNELS[i] ** 2 * channels
        total += forward * (2 if i == 0 else 3)  # images need no gradient
        channels = width
        if i in POOLED:
            side = (side - 3) // 2 + 1
    inputs = side * side * channels
    for width in (*HIDDEN, CLASSES):
        total += 3 * 2.0 * inputs * width
        inputs = width
    return total


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the parameters all begin with: kernels HWIO or in x out, of the scale of He et al."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for i, width in enumerate(FEATURES):
        shapes[f"conv{i + 1}"] = (KERNELS[i], KERNELS[i], channels, width)
        channels = width
    inputs = 6 * 6 * channels
    for i, width in enumerate((*HIDDEN, CLASSES), start=6):
        shapes[f"fc{i}"] = (inputs, width)
        inputs = width
    made = {}
    for name, shape in shapes.items():
        std = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
        made[f"{name}.kernel"] = rng.standard_normal(shape, np.float32) * std
        made[f"{name}.bias"] = np.zeros(shape[-1], np.float32)
    return made


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (size, 227, 227, 3) of noise and their labels."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((size, SIDE, SIDE, 3), np.float32)
    return images, rng.integers(0, CLASSES, size)


def jax_peer(naive: bool, size: int, dtype: str) -> tuple[Callable, dict[str, Any], Callable]:
    """Return steps, loss and gradients without dropout, and what memory the steps have taken.

    Steps are as many as asked for, one after the other, and waited for at the end.
    """
    from alexnet_jax.host import heap

    if not naive:
        heap.keep()
    import jax
    import jax.numpy as jnp
    import optax

    from alexnet_jax import AlexNet
    from alexnet_jax.optim import momentum_sgd

    make = _naive_network() if naive else AlexNet
    images, labels = map(jnp.asarray, batch(size))
    named = parameters()
    layers = {name.partition(".")[0] for name in named}
    params = {
        layer: {part: jnp.asarray(named[f"{layer}.{part}"]) for part in ("kernel", "bias")}
        for layer in layers
    }
    if naive:
        optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM))
    else:
        optimizer = momentum_sgd(RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def loss(params: Any, images: Any, labels: Any, key: Any, dropout: float) -> jax.Array:
        logits: Any = make(dropout=dropout, dtype=jnp.dtype(dtype)).apply(
            {"params": params}, images, train=True, rngs={"dropout": key}
        )
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state: Any, images: Any, labels: Any) -> tuple[Any, jax.Array]:
        params, opt_state, number = state
        key = jax.random.fold_in(jax.random.key(0), number)
        value, gradient = jax.value_and_grad(loss)(params, images, labels, key, 0.5)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, number + 1), value

    # Without the search for the fastest convolutions on a GPU, which takes a minute.
    options: Any = {"xla_gpu_autotune_level": 0}
    function = jax.jit(jax.value_and_grad(loss), static_argnums=4, compiler_options=options)
    few = images[:CHECKED], labels[:CHECKED]
    value, gradient = function(params, *few, jax.random.key(0), 0.0)
    checked = {"loss": np.asarray(value)}
    for name in named:
        layer, part = name.split(".")
        checked[name] = np.asarray(gradient[layer][part])
    state = (params, optimizer.init(params), jnp.int32(0))
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    counted: Any = compiled.memory_analysis()
    held = [state]

    def take(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            held[0], value = compiled(held[0], images, labels)
        float(value)
        return (time.perf_counter() - begun) / steps

    def memory() -> dict[str, float]:
        of_device = jax.devices()[0].memory_stats()  # of a CPU there are none
        most = {"most_memory_mb": of_device["peak_bytes_in_use"] / 1e6} if of_device else {}
        return {"temporaries_mb": counted.temp_size_in_bytes / 1e6} | most

    return take, checked, memory


def _naive_network() -> Any:
    import flax.linen as nn
    import jax.numpy as jnp
    from jax import lax

    class Naive(nn.Module):
        dropout: float = 0.5
        dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            for i, width in enumerate(FEATURES):
                padding = [(PADDING[i], PADDING[i])] * 2
                kernel, stride = (KERNELS[i],) * 2, STRIDES[i]
                conv = nn.Conv(
                    width, kernel, stride, padding, dtype=self.dtype, name=f"conv{i + 1}"
                )
                x = nn.relu(conv(x))
                if i in NORMALISED:
                    window = [(0, 0)] * 3 + [(N // 2, N // 2)]
                    squares = lax.reduce_window(
                        x * x, 0.0, lax.add, (1, 1, 1, N), (1, 1, 1, 1), window
                    )
                    x = x / (K + ALPHA * squares) ** BETA
                if i in POOLED:
                    x = nn.max_pool(x, (3, 3), (2, 2))
            x = x.reshape(x.shape[0], -1)
            for i, width in enumerate(HIDDEN, start=6):
                x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"fc{i}")(x))
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            return nn.Dense(CLASSES, dtype=self.dtype, name="fc8")(x).astype(jnp.float32)

    return Naive


def torch_network() -> Any:
    """Return the network in PyTorch."""
    from torch import nn

    layers: list[Any] = []
    channels = 3
    for i, width in enumerate(FEATURES):
        layers += [nn.Conv2d(channels, width, KERNELS[i], STRIDES[i], PADDING[i]), nn.ReLU()]
        channels = width
        if i in NORMALISED:  # which divides alpha by the size of the window
            layers.append(nn.LocalResponseNorm(N, ALPHA * N, BETA, K))
        if i in POOLED:
            layers.append(nn.MaxPool2d(3, 2))
    layers.append(nn.Flatten())
    inputs = 6 * 6 * channels
    for width in HIDDEN:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.5)]
        inputs = width
    layers.append(nn.Linear(inputs, CLASSES))
    return nn.Sequential(*layers)


def torch_peer(peer: str, size: int, dtype: str) -> tuple[Callable, dict[str, Any], Callable]:
    """Return the same of PyTorch, as the name of the `peer` says."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which is what JAX takes there
    network = torch_network().to(device, memory_format=torch.channels_last)
    with_weights = [x for x in network if hasattr(x, "weight")]
    names = [f"conv{i}" for i in range(1, 6)] + [f"fc{i}" for i in range(6, 9)]
    named = parameters()
    with torch.no_grad():
        for name, layer in zip(names, with_weights, strict=True):
            layer.weight.copy_(torch.from_numpy(_to_torch(name, named[f"{name}.kernel"])))
            layer.bias.copy_(torch.from_numpy(named[f"{name}.bias"]))

    images, labels = batch(size)
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # channels_last as it lies
    y = torch.from_numpy(labels).to(device)
    criterion = nn.CrossEntropyLoss()

    def forward_and_loss(x: Any, y: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return criterion(network(x), y)

    network.eval()
    value = forward_and_loss(x[:CHECKED], y[:CHECKED])
    value.backward()
    checked = {"loss": value.detach().cpu().numpy()}
    for name, layer in zip(names, with_weights, strict=True):
        checked[f"{name}.kernel"] = _from_torch(name, layer.weight.grad.cpu().numpy())
        checked[f"{name}.bias"] = layer.bias.grad.cpu().numpy().copy()

    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), RATE, MOMENTUM, weight_decay=DECAY, fused=device == "cuda"
    )
    mode = "reduce-overhead" if "graphs" in peer else None
    forward = torch.compile(forward_and_loss, mode=mode) if "compile" in peer else forward_and_loss

    def take(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = forward(x, y)
            value.backward()
            optimizer.step()
        value.item()
        return (time.perf_counter() - begun) / steps

    def memory() -> dict[str, float]:
        of_gpu = device == "cuda"
        return {"most_memory_mb": torch.cuda.max_memory_allocated() / 1e6} if of_gpu else {}

    return take, checked, memory


def _to_torch(name: str, kernel: np.ndarray) -> np.ndarray:
    if name.startswith("conv"):
        return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    if name == "fc6":  # PyTorch flattens channels first
        kernel = kernel.reshape(6, 6, FEATURES[-1], -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    return np.ascontiguousarray(kernel.T)


def _from_torch(name: str, weight: np.ndarray) -> np.ndarray:
    if name.startswith("conv"):
        return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
    kernel = weight.T
    if name == "fc6":
        kernel = kernel.reshape(FEATURES[-1], 6, 6, -1).transpose(1, 2, 0, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    return np.ascontiguousarray(kernel)


def serve(peer: str, size: int, dtype: str, gradients: pathlib.Path) -> None:
    """Be a peer: check, then take as many steps as each line on stdin says."""
    of_torch = "torch" in peer
    take, checked, memory = (
        torch_peer(peer, size, dtype) if of_torch else jax_peer(peer == "naive", size, dtype)
    )
    np.savez(gradients, **checked)
    for _ in range(3):  # compiles, records graphs, and warms up
        take(1)
    print(json.dumps(memory()), flush=True)
    for line in sys.stdin:
        print(json.dumps(take(int(line))), flush=True)
