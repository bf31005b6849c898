"""AlexNet and Krizhevsky's CIFAR nets in float64 NumPy: forward, gradients, one update.

Written from the formulas, independent of JAX and of alexnet_jax. `spec` is a plain dict with the
fields of a config's model. Images are (batch, H, W, 3), maps (batch, rows, columns, channels).
Parameters are params[layer]["kernel" | "bias"]:

    conv1    (kh, kw, in / groups, out)                      (out)
    local3   (out rows, out columns, in * kh * kw, out)      (out rows, out columns, out)
    fc6      (in, out)                                       (out)

Everything that slides over a map is written with `windows`, which copies each window out, and
`windows_gradient`, which adds up what every copy of a pixel receives.
"""

import math

import numpy as np

from tests.reference import ops

# n image, i j the place of the window, a b the place in the window, c channel, o output; f feature.
# The channel is the slowest of a local kernel's features, as in conv_general_dilated_patches.
_PRODUCTS = {
    "conv": ("nijcab", "abco", "nijo"),
    "local": ("nijcab", "ijcabo", "nijo"),
    "fc": ("nf", "fo", "no"),
}


def forward(spec, params, images, *, train=False, masks=None):
    """Return every array of the network by name, in order; the last are the logits.

    A layer's array has the layer's name and is taken before its ReLU; a stage's is named by the
    stage and the layer's number: conv1, relu1, lrn1, max_pool1, ..., fc6, relu6, dropout6, ....
    masks, read when train: {"fc6": bool (batch, units)}, True for a unit that is kept; without
    masks nothing is dropped, but outputs are scaled as in training.
    """
    params = _float64(params)
    arrays = {}
    x = np.asarray(images, np.float64) * spec["input_scale"]
    for name in _names(spec):
        if _kind(name) in _PRODUCTS:
            x = _layer(spec, name, x, **params[name])
        else:
            x = _stage(spec, name, x, _dropout_factor(spec, name, train, masks))
        arrays[name] = x
    return arrays


def gradients(spec, params, images, labels, *, masks=None):
    """Return the mean loss in training and its gradients, nested like params."""
    params = _float64(params)
    arrays = forward(spec, params, images, train=True, masks=masks)
    loss, g = cross_entropy(list(arrays.values())[-1], labels)
    images = np.asarray(images, np.float64) * spec["input_scale"]
    inputs = dict(zip(arrays, [images, *arrays.values()], strict=False))
    found = {}
    for name, x in reversed(inputs.items()):
        if _kind(name) in _PRODUCTS:
            found[name], g = _layer_gradients(spec, name, x, g, **params[name])
        else:
            g = _stage_gradient(spec, name, x, g, _dropout_factor(spec, name, True, masks))
    return loss, {name: found[name] for name in params}


def cross_entropy(logits, labels):
    """Return the mean of -log softmax(logits)[label] and its gradient, (p - [label]) / batch."""
    logits = np.asarray(logits, np.float64)
    rows = np.arange(len(logits))
    logits = logits - logits.max(-1, keepdims=True)  # the softmax is blind to a common shift
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    g = np.exp(log_p)
    g[rows, labels] -= 1
    return -log_p[rows, labels].mean(), g / len(logits)


def momentum_update(params, velocity, gradients, *, rates, decays, momentum):
    """Return the new params and velocity.

    v <- momentum v - decay rate w - rate g ; w <- w + v (the paper, section 5), and neither moves
    where the rate is 0: such a parameter is frozen. All arguments but momentum are nested alike.
    """
    params, velocity, gradients = _float64(params), _float64(velocity), _float64(gradients)
    for layer, leaves in gradients.items():
        for leaf, g in leaves.items():
            rate, decay = rates[layer][leaf], decays[layer][leaf]
            if rate == 0:
                continue
            w, v = params[layer][leaf], velocity[layer][leaf]
            v = momentum * v - decay * rate * w - rate * g
            params[layer][leaf], velocity[layer][leaf] = w + v, v
    return params, velocity


def _names(spec):
    """Return the names of forward's arrays, in order."""
    names = []
    for number, (layer, stages) in enumerate(zip(spec["layers"], spec["stages"], strict=True), 1):
        names += [layer, *(f"{stage}{number}" for stage in stages)]
    first = len(spec["layers"]) + 1
    last = first + len(spec["hidden"])
    for number in range(first, last):
        names += [f"fc{number}", f"relu{number}", f"dropout{number}"]
    return [*names, f"fc{last}"]


def _kind(name):
    return name.rstrip("0123456789")


def _float64(tree):
    """Return a copy of the two levels of dicts, with float64 arrays."""
    return {
        layer: {leaf: np.asarray(array, np.float64) for leaf, array in leaves.items()}
        for layer, leaves in tree.items()
    }


# Layers


def _layer(spec, name, x, kernel, bias):
    """Return the products of each window with its kernel, summed, plus the bias.

    With groups, part k of the output channels reads part k of the input channels.
    """
    a, b, y = _PRODUCTS[_kind(name)]
    factors = zip(*_factors(spec, name, x, kernel), strict=True)
    parts = [np.einsum(f"{a},{b}->{y}", *pair, optimize=True) for pair in factors]
    return np.concatenate(parts, -1) + bias


def _layer_gradients(spec, name, x, g, kernel, bias):
    """Return {"kernel", "bias"}, the gradients of sum(g * y), and that with respect to x.

    y is linear in each factor, so a factor's gradient is the product of g and the other factor.
    """
    a, b, y = _PRODUCTS[_kind(name)]
    inputs, kernels = _factors(spec, name, x, kernel)
    gs = np.split(g, len(inputs), -1)
    pairs = list(zip(inputs, kernels, gs, strict=True))
    dinputs = [np.einsum(f"{y},{b}->{a}", part, k, optimize=True) for _, k, part in pairs]
    dkernels = [np.einsum(f"{a},{y}->{b}", i, part, optimize=True) for i, _, part in pairs]
    dkernel = np.concatenate(dkernels, -1).reshape(kernel.shape)
    dbias = g.sum(tuple(range(g.ndim - bias.ndim)))
    if _kind(name) == "fc":
        dx = dinputs[0].reshape(x.shape)
    else:
        dx = windows_gradient(np.concatenate(dinputs, 3), x.shape, **_geometry(spec, name))
    return {"kernel": dkernel, "bias": dbias}, dx


def _factors(spec, name, x, kernel):
    """Return what the layer multiplies: the inputs and the kernels, a list of parts of each."""
    if _kind(name) == "fc":
        return [x.reshape(len(x), -1)], [kernel]  # flat in the order rows, columns, channels
    inputs = windows(x, **_geometry(spec, name))
    if _kind(name) == "local":
        return [inputs], [kernel.reshape(inputs.shape[1:] + kernel.shape[-1:])]
    reads_all = name == spec["layers"][0] or name in spec["cross_layers"]
    groups = 1 if reads_all else spec["groups"]
    return np.split(inputs, groups, 3), np.split(kernel, groups, -1)


def _geometry(spec, name):
    """Return the arguments of `windows` for a convolution, a local layer or a pool."""
    if name in spec["layers"]:
        i = spec["layers"].index(name)
        size, stride, ring = spec["kernels"][i], spec["strides"][i], (spec["padding"][i],) * 2
    else:
        size, stride, ring = spec["pool"]["window"], spec["pool"]["stride"], (0, 0)
    return {"size": size, "stride": stride, "ring": ring, "ceil": spec["ceil_mode"]}


# Stages


def _stage(spec, name, x, factor):
    """Return the stage's output; factor is what dropout multiplies by."""
    match _kind(name):
        case "relu":
            return np.maximum(x, 0)
        case "dropout":
            return x * factor
        case "lrn":
            parts = np.split(x, _norm_groups(spec), -1)
            normed = [ops.local_response_norm(part, **_norm(spec["lrn"])) for part in parts]
            return np.concatenate(normed, -1)
        case "spatial_norm":
            return spatial_norm(x, **_norm(spec["spatial_norm"]))
        case "max_pool":
            return ops.max_pool(_framed(x, -np.inf, **_geometry(spec, name)), **spec["pool"])
        case "avg_pool":
            return avg_pool(x, **_geometry(spec, name))
    raise ValueError(f"no stage {name}")


def _stage_gradient(spec, name, x, g, factor):
    """Return the gradient of sum(g * stage(x)) with respect to x."""
    match _kind(name):
        case "relu":
            return g * (x > 0)
        case "dropout":
            return g * factor
        case "lrn":
            xs, gs = (np.split(array, _norm_groups(spec), -1) for array in (x, g))
            norm = _norm(spec["lrn"])
            parts = [
                ops.local_response_norm_gradient(*pair, **norm) for pair in zip(xs, gs, strict=True)
            ]
            return np.concatenate(parts, -1)
        case "spatial_norm":
            return spatial_norm_gradient(x, g, **_norm(spec["spatial_norm"]))
        case "max_pool":
            framed = _framed(x, -np.inf, **_geometry(spec, name))
            dx = ops.max_pool_gradient(framed, g, **spec["pool"])
            return dx[:, : x.shape[1], : x.shape[2]]
        case "avg_pool":
            return avg_pool_gradient(x, g, **_geometry(spec, name))
    raise ValueError(f"no stage {name}")


def _dropout_factor(spec, name, train, masks):
    """Return what dropout multiplies a layer's outputs by; the paper scales when testing."""
    keep = 1 - spec["dropout"]
    scaled_in_training = spec["dropout_scaling"] == "train"
    if not train:
        return 1 if scaled_in_training else keep
    kept = (masks or {}).get(name.replace("dropout", "fc"), True)
    return kept / keep if scaled_in_training else kept


def _norm(settings):
    return {key: settings[key] for key in ("k", "n", "alpha", "beta")}


def _norm_groups(spec):
    """Return into how many parts of the channels, normalised apart, LRN divides a map."""
    return spec["groups"] if spec["lrn"]["within_groups"] else 1


def spatial_norm(x, k, n, alpha, beta):
    """Return x d^-beta, d = k + alpha sum x^2 over the n x n pixels around, each channel alone."""
    return x * _spatial_denominators(x, k, n, alpha) ** -beta


def spatial_norm_gradient(x, g, k, n, alpha, beta):
    """Return the gradient of sum(g * y) with respect to x.

    g d^-beta + 2 alpha x sum over the windows that hold the pixel of -beta g x d^(-beta - 1).
    """
    d = _spatial_denominators(x, k, n, alpha)
    dd = -beta * g * x * d ** (-beta - 1)
    sums = windows_gradient(dd[..., None, None], x.shape, n, ring=(n // 2, (n - 1) // 2))
    return g * d**-beta + 2 * alpha * x * sums


def _spatial_denominators(x, k, n, alpha):
    return k + alpha * windows(x**2, n, ring=(n // 2, (n - 1) // 2)).sum((4, 5))


def avg_pool(x, **geometry):
    """Return the mean of each window's pixels, of those that exist."""
    return windows(x, **geometry).sum((4, 5)) / windows(np.ones_like(x), **geometry).sum((4, 5))


def avg_pool_gradient(x, g, **geometry):
    """Return the gradient of sum(g * y): each pixel gets an equal share of its windows' g."""
    shares = g / windows(np.ones_like(x), **geometry).sum((4, 5))
    return windows_gradient(shares[..., None, None], x.shape, **geometry)


# Windows


def windows(x, size, stride=1, ring=(0, 0), ceil=False, outside=0):
    """w[n, i, j, c, a, b] = x[n, i stride + a - ring[0], j stride + b - ring[0], c].

    Pixels that do not exist are `outside`. ring: how many of them lie before and after the map,
    per axis. ceil: let the last window overhang rather than leave pixels at the end unread (with
    stride <= size each window then still holds a pixel, or one of the ring).
    """
    x = _framed(x, outside, size, stride, ring, ceil)
    every = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return every[:, ::stride, ::stride]


def windows_gradient(g, shape, *args, **geometry):
    """Return the gradient of sum(g * windows(x)) with respect to x of that shape."""
    size = math.prod(shape)
    places = windows(np.arange(size).reshape(shape), *args, **geometry, outside=size)
    weights = np.broadcast_to(g, places.shape)
    sums = np.bincount(places.ravel(), weights.ravel(), minlength=size + 1)
    return sums[:size].reshape(shape)  # less what the pixels outside received


def _framed(x, outside, size, stride, ring, ceil):
    """Return x with the ring around and, with ceil, the overhang at the bottom and right."""
    before, after = ring
    overhangs = [-(extent + before + after - size) % stride * ceil for extent in x.shape[1:3]]
    rows, columns = ((before, after + overhang) for overhang in overhangs)
    return np.pad(x, [(0, 0), rows, columns, (0, 0)], constant_values=outside)
