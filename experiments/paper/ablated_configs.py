"""The paper's ablations as differences of a config: what each part is, and how to take it away."""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError

Differences = dict[str, Any]


class NotApplicable(Exception):
    """The recipe has nothing that this ablation could take away; the text says what."""


def no_lrn(config: ConfigDict) -> Differences:
    """Leave out local response normalisation."""
    return {"model.stages": _stages(config, without="lrn")}


def no_overlap(config: ConfigDict) -> Differences:
    """Pool over windows as large as the stride; feature maps of an odd side keep their size."""
    if config.model.pool.window <= config.model.pool.stride:
        raise NotApplicable("its pooling windows do not overlap")
    return {"model.pool.window": config.model.pool.stride}


def two_columns(config: ConfigDict) -> Differences:
    """Divide the layers between two columns as the paper's two GPUs did; conv3 reads both.

    On one device: it is the network that `parallel=split` puts on two.
    """
    if config.model.groups == 2:
        raise NotApplicable("it has two columns")
    if len(config.model.layers) < 2 or not config.model.cross_layers:
        raise NotApplicable("it has no layer that would read both columns")
    return {"model.groups": 2}


def half_width(config: ConfigDict) -> Differences:
    """Take half the feature maps in one column, but in the last convolution as many (section 3.2).

    So the fully connected layers, which hold most parameters, stay what they are.
    """
    *halved, last = config.model.features
    if not halved or min(halved) < 2:
        raise NotApplicable("its layers cannot be halved")
    differences: Differences = {"model.features": (*(width // 2 for width in halved), last)}
    if config.model.groups == 2:
        differences |= {"model.groups": 1, "parallel": "pmap"}
    return differences


def no_colour(config: ConfigDict) -> Differences:
    """Leave the colours as they are."""
    if config.augment.colour_std == 0:
        raise NotApplicable("it does not change colours")
    return {"augment.colour_std": 0.0}


def no_crops_flips(config: ConfigDict) -> Differences:
    """Show every image whole and as it is: stored at the size of a crop, not reflected."""
    if config.augment.crop == config.dataset.image_size and not config.augment.flip:
        raise NotApplicable("it neither crops nor reflects")
    return {"dataset.image_size": config.augment.crop, "augment.flip": False}


def no_dropout(config: ConfigDict) -> Differences:
    """Drop no units."""
    if config.model.dropout == 0 or not config.model.hidden:
        raise NotApplicable("it has no dropout")
    return {"model.dropout": 0.0}


def tanh(config: ConfigDict) -> Differences:
    """Take tanh for ReLU, and what keeps it from being saturated at the start.

    That is biases of 0 (those of 1 are for ReLU), He's initial weights, and inputs of the order
    of 1.
    """
    stages = _stages(config, without="relu", put="tanh")
    if "tanh" not in stages[-1]:
        raise NotApplicable("its last convolution, which the hidden layers follow, has no ReLU")
    if any(name.startswith("local") for name in config.model.layers):
        raise NotApplicable("He's initial weights are not those of a locally connected layer")
    return {
        "model.stages": stages,
        "model.biases": (0.0,) * len(config.model.biases),
        "model.initializer": "he_normal",
        "model.init_stds": (),
        "model.input_scale": min(config.model.input_scale, 1 / 64),
    }


def bfloat16(config: ConfigDict) -> Differences:
    """Compute in bfloat16: nothing is taken away but bits, and the question is the same."""
    if config.dtype == "bfloat16":
        raise NotApplicable("it computes in bfloat16")
    return {"dtype": "bfloat16"}


def without_layer(config: ConfigDict, *, index: int) -> Differences:
    """Take layer `index` away; the one before takes over its pooling, the one after its name."""
    model = config.model
    pools = [s for s in model.stages[index] if s.endswith("pool")]
    doubled = [s for s in pools if s in model.stages[index - 1]]
    if doubled:
        raise NotApplicable(f"{model.layers[index - 1]} has its {doubled[0]} already")

    def rest(values: tuple) -> tuple:
        return (*values[:index], *values[index + 1 :])

    names = [f"{name.rstrip('0123456789')}{i}" for i, name in enumerate(rest(model.layers), 1)]
    # Who reads both columns: the same layers under their new names, and for one that is taken away
    # the next.
    crossing = {model.layers.index(name) for name in model.cross_layers}
    crossing = {i - (i > index) for i in crossing} & set(range(1, len(names)))
    stages = list(model.stages)
    stages[index - 1] = (*stages[index - 1], *pools)
    per_layer = ("features", "kernels", "strides", "padding", "biases", "init_stds")
    return {
        "model.layers": tuple(names),
        "model.cross_layers": tuple(names[i] for i in sorted(crossing)),
        "model.stages": rest(tuple(stages)),
        **{f"model.{name}": rest(tuple(model[name])) for name in per_layer},
    }


PARTS = (
    *(no_lrn, no_overlap, two_columns, half_width, no_colour, no_crops_flips, no_dropout),
    *(tanh, bfloat16),
)


def _stages(config: ConfigDict, *, without: str, put: str | None = None) -> tuple:
    """Return `model.stages` with `put`, or nothing, in place of `without`."""
    stages = config.model.stages
    if not any(without in of_layer for of_layer in stages):
        raise NotApplicable(f"it has no {without}")
    instead = (put,) if put else ()
    return tuple(
        tuple(new for s in of_layer for new in (instead if s == without else (s,)))
        for of_layer in stages
    )


def ablations(config: ConfigDict) -> tuple[dict[str, Differences], dict[str, str]]:
    """Return the differences of each ablation of `config`, and why others do not apply.

    'full', no difference, comes first. The layers after conv2 are left out in turn; one that is
    like the layer before it, only once.
    """
    makers: dict[str, Callable[[ConfigDict], Differences]] = {f.__name__: f for f in PARTS}
    for index, layer in enumerate(config.model.layers[2:], 2):
        makers[f"without_{layer}"] = functools.partial(without_layer, index=index)
    found: dict[str, Differences] = {"full": {}}
    left_out = {}
    for name, make in makers.items():
        try:
            differences = make(config)
            if same := [other for other in found if found[other] == differences]:
                raise NotApplicable(f"it would be the same as {same[0]}")  # layers alike
            found[name] = differences
            config_lib.validate(changed(config, differences))
        except (NotApplicable, InputError) as reason:
            found.pop(name, None)
            left_out[name] = str(reason)
    return found, left_out


def changed(config: ConfigDict, differences: Differences) -> ConfigDict:
    """Return a copy of `config` with `differences`."""
    copy = config.copy_and_resolve_references()
    with copy.ignore_type():
        copy.update_from_flattened_dict(differences)
    return copy
