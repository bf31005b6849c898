"""The fields of a config: their types, ranges and the rules between them.

A recipe (configs/*.py) is data; this file says which data are a recipe. `validate` is called before
anything is created, prepared or compiled.
"""

import difflib
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax.errors import InputError

CONV_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


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


def _integers(length: int, low: int) -> Field:
    def accepts(v: tuple) -> bool:
        return len(v) == length and all(type(i) is int and i >= low for i in v)

    return Field(tuple, accepts, f"a tuple of {length} integers of at least {low}")


def _layers() -> Field:
    def accepts(v: tuple) -> bool:
        return len(set(v)) == len(v) and all(name in CONV_LAYERS for name in v)

    return Field(tuple, accepts, "a tuple of layers, each of conv1 to conv5, such as ('conv3',)")


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
    "parallel": _choice("pmap"),
    "learning_rate": _number(0, open_low=True),
    "momentum": _fraction(),
    "weight_decay": _number(0),
    "plateau.factor": Field(float, lambda v: 0 < v < 1, "a number between 0 and 1"),
    "plateau.patience": _integer(1),
    "plateau.rtol": _fraction(),
    "plateau.min_scale": _number(0, 1),
    "eval_every_epochs": _integer(1),
    "checkpoint_every_steps": _integer(1),
    "log_every_steps": _integer(1),
    "model.num_classes": _integer(2),
    "model.groups": Field(int, lambda v: v in (1, 2), "1 or 2"),
    "model.cross_layers": _layers(),
    "model.features": _integers(5, 1),
    "model.kernels": _integers(5, 1),
    "model.strides": _integers(5, 1),
    "model.padding": _integers(5, 0),
    "model.hidden": _integers(2, 1),
    "model.dropout": _fraction(),
    "model.dropout_scaling": _choice("train", "test"),
    "model.lrn.layers": _layers(),
    "model.lrn.k": _number(0, open_low=True),
    "model.lrn.n": _integer(1),
    "model.lrn.alpha": _number(0),
    "model.lrn.beta": _number(0),
    "model.lrn.within_groups": Field(bool, lambda v: True, "True or False"),
    "model.pool.layers": _layers(),
    "model.pool.window": _integer(1),
    "model.pool.stride": _integer(1),
    "model.initializer": _choice("normal", "he_normal"),
    "model.init_std": _number(0, open_low=True),
    "model.biases": Field(
        tuple,
        lambda v: len(v) == 8 and all(type(b) in (int, float) and math.isfinite(b) for b in v),
        "a tuple of 8 finite numbers, for conv1 to conv5, fc6, fc7, fc8",
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
    "augment.flip": Field(bool, lambda v: True, "True or False"),
    "augment.colour_std": _number(0),
}

# What a continued run may change: how long it is, what it writes when, where the pictures lie
# and what is done about damaged ones.
CHANGEABLE = frozenset(
    {
        "num_epochs",
        "num_steps",
        "checkpoint_every_steps",
        "log_every_steps",
        "dataset.path",
        "dataset.data_dir",
        "dataset.on_error",
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
        right_type = isinstance(value, field.type) or (field.type is float and type(value) is int)
        if isinstance(value, bool) and field.type is not bool:
            right_type = False
        if not right_type or not _accepted(field, value):
            raise InputError(f"config.{name}={value!r}: expected {field.expected}")
    if config.augment.crop > config.dataset.image_size:
        raise InputError(
            f"config.augment.crop={config.augment.crop} is larger than the stored pictures:"
            f" config.dataset.image_size={config.dataset.image_size}"
        )
    _validate_groups(config.model)
    _validate_geometry(config.model, config.augment.crop)


def _accepted(field: Field, value: Any) -> bool:
    try:
        return field.accepts(value)
    except (TypeError, OverflowError):  # a tuple of what cannot be compared, 10**400
        return False


def _validate_groups(model: ConfigDict) -> None:
    for name, width in [
        *zip(CONV_LAYERS, model.features, strict=True),
        ("fc6", model.hidden[0]),
        ("fc7", model.hidden[1]),
    ]:
        if width % model.groups:
            raise InputError(
                f"config.model.groups={model.groups} does not divide the {width} units of {name}"
            )


def _validate_geometry(model: ConfigDict, crop: int) -> None:
    """Follow the side of the feature maps and refuse a crop that some layer does not fit into."""
    side = crop
    for i, name in enumerate(CONV_LAYERS):
        side = (side + 2 * model.padding[i] - model.kernels[i]) // model.strides[i] + 1
        if side >= 1 and name in model.pool.layers:
            name = f"the pooling after {name}"
            side = (side - model.pool.window) // model.pool.stride + 1
        if side < 1:
            raise InputError(
                f"config.augment.crop={crop} is too small: nothing is left for {name};"
                " take a larger crop, or smaller config.model.kernels and strides"
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
        return tuple(value) if isinstance(value, list) else value

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
