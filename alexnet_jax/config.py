"""The fields of a config: their types, ranges and the rules between them.

A recipe (configs/*.py) is data; this file says which data are a recipe. `validate` is called before
anything is created, prepared or compiled.
"""

import difflib
import fnmatch
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax.errors import InputError

STAGES = ("relu", "lrn", "spatial_norm", "max_pool", "avg_pool")


class Field(NamedTuple):
    """One field: its type, a test of its value, and the words for what passes the test."""

    type: type | tuple[type, ...]
    accepts: Callable[[Any], bool]
    expected: str


def _integer(low: int, high: int = 2**31 - 1) -> Field:
    return Field(int, lambda v: low <= v <= high, f"an integer from {low} to {high}")


def _number(low: float, high: float = math.inf, *, open_low: bool = False) -> Field:
    def accepts(v: float) -> bool:
        return math.isfinite(v) and (v > low if open_low else v >= low) and v <= high

    words = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
    return Field(float, accepts, words + (f" and at most {high:g}" if high < math.inf else ""))


def _fraction() -> Field:
    return Field(float, lambda v: 0 <= v < 1, "a number of at least 0 and below 1")


def _choice(*names: str) -> Field:
    return Field(str, lambda v: v in names, "one of " + ", ".join(repr(n) for n in names))


def _integers(low: int) -> Field:
    def accepts(v: tuple) -> bool:
        return all(type(i) is int and i >= low for i in v)

    return Field(tuple, accepts, f"a tuple of integers of at least {low}, one a layer")


def _flag() -> Field:
    return Field(bool, lambda v: True, "True or False")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_layers(v: tuple) -> bool:
    names = [(f"conv{i}", f"local{i}") for i in range(1, len(v) + 1)]
    return len(v) >= 1 and all(name in either for name, either in zip(v, names, strict=True))


def _are_stages(v: tuple) -> bool:
    once = all(len(set(stages)) == len(stages) for stages in v)
    return once and all(type(s) is tuple and set(s) <= set(STAGES) for s in v)


def _are_milestones(v: tuple) -> bool:
    return all(
        type(epoch) is int and epoch >= 2 and type(names) is str and _is_number(f) and f >= 0
        for epoch, names, f in v
    )


def _by_parameter(low: str) -> Field:
    return Field(
        tuple,
        lambda v: all(type(names) is str and _is_number(f) and f >= 0 for names, f in v),
        f"a tuple of pairs of parameters and {low}, such as (('*/bias', 0.0),)",
    )


FIELDS = {
    "seed": _integer(0),
    "batch_size": _integer(1),
    "num_epochs": _integer(1),
    "num_steps": Field(
        (int, type(None)),
        lambda v: v is None or v >= 1,
        "an integer of at least 1; where it is not given num_epochs counts",
    ),
    "dtype": _choice("float32", "bfloat16"),
    "parallel": _choice("pmap", "split"),
    "learning_rate": _number(0, open_low=True),
    "momentum": _fraction(),
    "weight_decay": _number(0),
    "rate_factors": _by_parameter("factors of their learning rate"),
    "weight_decays": _by_parameter("their weight decay"),
    "schedule": _choice("plateau", "epochs"),
    "milestones": Field(
        tuple,
        _are_milestones,
        "a tuple of (epoch of at least 2, parameters, factor), such as ((25, '*', 0.1),)",
    ),
    "plateau.factor": Field(float, lambda v: 0 < v < 1, "a number between 0 and 1"),
    "plateau.patience": _integer(1),
    "plateau.rtol": _fraction(),
    "plateau.min_scale": _number(0, 1),
    "eval_every_epochs": _integer(1),
    "checkpoint_every_steps": _integer(1),
    "log_every_steps": _integer(1),
    "model.num_classes": _integer(2),
    "model.groups": Field(int, lambda v: v in (1, 2), "1 or 2"),
    "model.cross_layers": Field(
        tuple,
        lambda v: len(set(v)) == len(v) and all(type(name) is str for name in v),
        "a tuple of layers, such as ('conv3',)",
    ),
    "model.layers": Field(
        tuple,
        _are_layers,
        "a tuple of convolutional layers in order, each conv1 or local1, conv2 or local2, ...",
    ),
    "model.features": _integers(1),
    "model.kernels": _integers(1),
    "model.strides": _integers(1),
    "model.padding": _integers(0),
    "model.ceil_mode": _flag(),
    "model.stages": Field(
        tuple,
        _are_stages,
        f"for each layer a tuple, without repetition, of {', '.join(map(repr, STAGES))}",
    ),
    "model.hidden": _integers(1),
    "model.dropout": _fraction(),
    "model.dropout_scaling": _choice("train", "test"),
    "model.lrn.k": _number(0, open_low=True),
    "model.lrn.n": _integer(1),
    "model.lrn.alpha": _number(0),
    "model.lrn.beta": _number(0),
    "model.lrn.within_groups": _flag(),
    "model.spatial_norm.k": _number(0, open_low=True),
    "model.spatial_norm.n": _integer(1),
    "model.spatial_norm.alpha": _number(0),
    "model.spatial_norm.beta": _number(0),
    "model.pool.window": _integer(1),
    "model.pool.stride": _integer(1),
    "model.initializer": _choice("normal", "he_normal"),
    "model.init_std": Field(
        (float, tuple),
        lambda v: all(_is_number(s) and s > 0 for s in (v if type(v) is tuple else (v,))),
        "a number above 0, or a tuple of them, one a layer",
    ),
    "model.biases": Field(
        tuple, lambda v: all(map(_is_number, v)), "a tuple of finite numbers, one a layer"
    ),
    "model.input_scale": _number(0, open_low=True),
    "dataset.name": Field(str, bool, "a tfds name, 'folder' or 'digits'"),
    "dataset.path": Field(str, lambda v: True, "a path"),
    "dataset.data_dir": Field(str, bool, "a path"),
    "dataset.image_size": _integer(1, 4096),
    "dataset.encoding": _choice("jpeg", "raw"),
    "dataset.jpeg_quality": _integer(1, 100),
    "dataset.on_error": _choice("raise", "skip"),
    "augment.crop": _integer(1),
    "augment.flip": _flag(),
    "augment.shared_by": _integer(1),
    "augment.mean_crop": _choice("same", "centre"),
    "augment.colour_std": _number(0),
    "augment.colour_rule": _choice("paper", "released"),
    "augment.colour_epochs": Field(
        (int, type(None)),
        lambda v: v is None or v >= 0,
        "an integer of at least 0; where it is not given all epochs count",
    ),
    "augment.test_crops": _choice("ten", "nine"),
}

# What a continued run may change: how long it is, how it is spread over devices, what it writes
# when, and where the pictures lie.
CHANGEABLE = frozenset(
    {
        "num_epochs",
        "num_steps",
        "parallel",
        "checkpoint_every_steps",
        "log_every_steps",
        "dataset.path",
        "dataset.data_dir",
    }
)


def flatten(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of `config`."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{rest}", leaf) for rest, leaf in flatten(value))
        else:
            yield name, value


def unknown_field(name: str) -> InputError:
    """Return the error for a dotted field name that does not exist, with the nearest that does."""
    last = name.rpartition(".")[2]  # --config.crop for augment.crop
    nearest = [f for f in FIELDS if f.rpartition(".")[2] == last]
    nearest = nearest or difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "alexnet_jax/config.py lists the fields"
    return InputError(f"config has no field {name!r}; {hint}")


def validate(config: ConfigDict) -> None:
    """Raise InputError, naming the field, unless `config` is complete and its values make sense."""
    values = dict(flatten(config))
    for name in values:
        if name not in FIELDS:
            raise unknown_field(name)
    for name, field in FIELDS.items():
        if name not in values:
            raise InputError(f"config lacks the field {name!r} ({field.expected})")
        value = values[name]
        right_type = isinstance(value, field.type) or (
            type(value) is int and field.type in (float, (float, tuple))
        )
        if isinstance(value, bool) and field.type is not bool:
            right_type = False
        if not right_type or not _accepted(field, value):
            raise InputError(f"config.{name}={value!r}: expected {field.expected}")
    if config.augment.crop > config.dataset.image_size:
        raise InputError(
            f"config.augment.crop={config.augment.crop} is larger than the stored pictures:"
            f" config.dataset.image_size={config.dataset.image_size}"
        )
    _validate_layers(config.model)
    _validate_groups(config)
    _validate_geometry(config.model, config.augment.crop)
    _validate_schedule(config)


def layer_names(model: ConfigDict) -> list[str]:
    """Return the names of the layers of `config.model` that have parameters, in order."""
    first = len(model.layers) + 1
    return [*model.layers, *(f"fc{i}" for i in range(first, first + len(model.hidden) + 1))]


def _validate_layers(model: ConfigDict) -> None:
    convolutions, all_layers = len(model.layers), len(layer_names(model))
    lengths = dict.fromkeys(("features", "kernels", "strides", "padding", "stages"), convolutions)
    for name, wanted in (lengths | {"biases": all_layers, "init_std": all_layers}).items():
        values = model[name]
        if isinstance(values, tuple) and len(values) != wanted:
            raise InputError(
                f"config.model.{name}={values!r} has {len(values)} entries; the network has"
                f" {wanted} such layers: {', '.join(layer_names(model)[:wanted])}"
            )
    for name in model.cross_layers:
        if name not in model.layers[1:]:
            raise InputError(
                f"config.model.cross_layers={model.cross_layers!r}: it may name"
                f" {', '.join(model.layers[1:]) or 'nothing, for there is one layer'}"
            )
    if model.ceil_mode and model.pool.stride > model.pool.window:
        raise InputError(
            f"config.model.pool.stride={model.pool.stride} is larger than its window"
            f" {model.pool.window}, which config.model.ceil_mode does not allow"
        )


def _accepted(field: Field, value: Any) -> bool:
    try:
        return field.accepts(value)
    except (TypeError, ValueError, OverflowError):  # a tuple of something else, 10**400
        return False


def _validate_groups(config: ConfigDict) -> None:
    model = config.model
    widths = [*model.features, *model.hidden]
    for name, width in zip(layer_names(model), widths, strict=False):  # the last one's are classes
        if width % model.groups:
            raise InputError(
                f"config.model.groups={model.groups} does not divide the {width} units of {name}"
            )
    local = [name for name in model.layers if name.startswith("local")]
    if model.groups > 1 and local:
        raise InputError(
            f"config.model.groups={model.groups}: {local[0]} is locally connected, and such layers"
            " have no groups here; take groups=1"
        )
    if config.parallel != "split":
        return
    if model.groups != 2:
        raise InputError(
            "config.parallel='split' divides the two columns of config.model.groups=2 between"
            f" devices; groups is {model.groups}: give --config.model.groups=2, or parallel='pmap'"
        )
    if model.num_classes % 2:
        raise InputError(
            f"config.parallel='split' halves the last layer, and config.model.num_classes="
            f"{model.num_classes} is odd; take parallel='pmap' (the same network)"
        )
    if not model.lrn.within_groups and any("lrn" in stages for stages in model.stages):
        raise InputError(
            "config.parallel='split' normalises inside a device; config.model.lrn.within_groups"
            " must be True, or take parallel='pmap'"
        )


def _validate_geometry(model: ConfigDict, crop: int) -> None:
    """Follow the side of the feature maps and refuse a crop that some layer does not fit into."""

    def after(side: int, window: int, stride: int) -> int:
        slack = stride - 1 if model.ceil_mode and side >= window else 0
        return (side - window + slack) // stride + 1

    side = crop
    for i, name in enumerate(model.layers):
        side = after(side + 2 * model.padding[i], model.kernels[i], model.strides[i])
        for stage in model.stages[i]:
            if side >= 1 and stage in ("max_pool", "avg_pool"):
                name = f"the pooling after {model.layers[i]}"
                side = after(side, model.pool.window, model.pool.stride)
        if side < 1:
            raise InputError(
                f"config.augment.crop={crop} is too small: nothing is left for {name};"
                " take a larger crop, or smaller config.model.kernels and strides"
            )


def _validate_schedule(config: ConfigDict) -> None:
    names = [f"{layer}/{p}" for layer in layer_names(config.model) for p in ("kernel", "bias")]
    patterns = {
        "milestones": [pattern for _, pattern, _ in config.milestones],
        "rate_factors": [pattern for pattern, _ in config.rate_factors],
        "weight_decays": [pattern for pattern, _ in config.weight_decays],
    }
    for field, given in patterns.items():
        for pattern in given:
            if not fnmatch.filter(names, pattern):
                raise InputError(
                    f"config.{field} names {pattern!r}, which no parameter matches; they are"
                    f" {names[0]}, {names[1]}, ..., {names[-1]}"
                )
    if config.milestones and config.schedule != "epochs":
        raise InputError(
            f"config.milestones count only with --config.schedule=epochs; it is {config.schedule!r}"
        )


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Write `config` to `path` as JSON."""
    write_json(config.to_dict(), path)


def write_json(tree: Any, path: pathlib.Path) -> None:
    """Write `tree` as JSON to `path`, whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(tree, indent=2) + "\n")
    scratch.replace(path)


def load(path: pathlib.Path) -> ConfigDict:
    """Read the config that `save` wrote.

    Raises InputError where the file is missing, is not JSON, or is not a valid config.
    """
    try:
        config = from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} is not a run directory") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it or take another run") from None
    validate(config)
    return config


def from_dict(tree: dict) -> ConfigDict:
    """Return the ConfigDict of a tree read from JSON, in which tuples have become lists."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(leaf) for name, leaf in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ConfigDict(tuples(tree))


def refuse_changes(
    old: ConfigDict, new: ConfigDict, workdir: pathlib.Path, only: tuple[str, ...] = ("",)
) -> None:
    """Raise InputError naming the fields in which `new` may not differ from the run of `old`.

    `only` limits them to those that begin with one of its strings.
    """
    was, now = dict(flatten(old)), dict(flatten(new))
    fields = [n for n in FIELDS if n.startswith(only) and n not in CHANGEABLE]
    changed = [f"{n}={was[n]!r} (now {now[n]!r})" for n in fields if was[n] != now[n]]
    if changed:
        raise InputError(
            f"{workdir} holds a run with {', '.join(changed)}; take another --workdir"
            " or give the same values"
        )
