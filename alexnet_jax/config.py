"""Checking a config, by the names of its fields; writing and reading it.

A recipe (configs/*.py) is data; this module says which data are a recipe. `validate` is called
before anything is created, prepared or compiled.
"""

import fnmatch
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.errors import InputError
from alexnet_jax.fields import (
    ADDED,
    CHANGEABLE,
    FIELDS,
    RENAMED,
    Field,
    bad_value,
    shown,
    unknown_field,
)
from alexnet_jax.host import regular, sync
from alexnet_jax.layers import layer_names, walk, wrong_length


def flatten(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of `config`."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{rest}", leaf) for rest, leaf in flatten(value))
        else:
            yield name, value


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
        right_type = isinstance(value, field.type) or (type(value) is int and field.type is float)
        if isinstance(value, bool) and field.type is not bool:
            right_type = False
        if not right_type or not _accepted(field, value):
            raise bad_value(name, value)
    if config.augment.crop > config.dataset.image_size:
        raise InputError(
            f"config.augment.crop={config.augment.crop} is larger than the stored images:"
            f" config.dataset.image_size={config.dataset.image_size}"
        )
    if (config.dataset.name == "folder") != bool(config.dataset.path):
        raise InputError(
            f"config.dataset.path={shown(config.dataset.path)} with config.dataset.name="
            f"{config.dataset.name!r}: name='folder' needs --config.dataset.path=FOLDER (of one"
            " folder per class), and nothing else takes one"
        )
    _validate_layers(config.model)
    _validate_groups(config)
    walk(config.model, config.augment.crop)
    _validate_schedule(config)


def _validate_layers(model: ConfigDict) -> None:
    if wrong := wrong_length(model):
        name, reason = wrong
        raise InputError(
            f"config.model.{name}={shown(model[name])} {reason} (config.model.layers and hidden)"
        )
    for name in model.cross_layers:
        if name not in model.layers[1:]:
            raise InputError(
                f"config.model.cross_layers={shown(model.cross_layers)}: it may name"
                f" {', '.join(model.layers[1:]) or 'nothing, for there is one layer'}"
            )
    if model.init_stds and model.initializer != "normal":
        raise InputError(
            f"config.model.init_stds has no effect with config.model.initializer="
            f"{model.initializer!r}; take 'normal', or init_stds=()"
        )
    if model.ceil_mode and model.pool.stride > model.pool.window:
        raise InputError(
            f"config.model.pool.stride={model.pool.stride} is larger than its window"
            f" {model.pool.window}, which config.model.ceil_mode does not allow"
        )


def _accepted(field: Field, value: Any) -> bool:
    try:
        return field.accepts(value)
    # Of a tuple of something else, or 10**400.
    except (TypeError, ValueError, OverflowError, RuntimeError):
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


def _validate_schedule(config: ConfigDict) -> None:
    names = [f"{layer}/{p}" for layer in layer_names(config.model) for p in ("kernel", "bias")]
    patterns = {
        "milestones": [pattern for _, pattern, _ in config.milestones],
        "lr_multipliers": [pattern for pattern, _ in config.lr_multipliers],
        "weight_decays": [pattern for pattern, _ in config.weight_decays],
    }
    for field, given in patterns.items():
        for pattern in given:
            if not fnmatch.filter(names, pattern):
                raise InputError(
                    f"config.{field} names {shown(pattern)}, which no parameter matches; they are"
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
    """Write `tree` as JSON to `path`, whole or not at all, and return when it is on the disk."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(tree, indent=2) + "\n")
    sync(scratch)
    scratch.replace(path)
    sync(path.parent)


def load(path: pathlib.Path) -> ConfigDict:
    """Read the config that `save` wrote.

    Raises InputError where the file is missing, is not JSON, or is not a valid config.
    """
    try:
        config = from_dict(json.loads(regular(path).read_text()))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} is not a run directory") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it or take another run") from None
    validate_read(config, path)
    return config


def validate_read(config: ConfigDict, path: pathlib.Path) -> None:
    """Raise InputError, naming `path` as well, unless the config that was read there is valid."""
    try:
        validate(config)
    except InputError as error:
        raise InputError(f"{path} holds a config that cannot be used: {error}") from error


def from_dict(tree: dict) -> ConfigDict:
    """Return the ConfigDict of a tree read from JSON, in which tuples have become lists.

    Fields that the version which wrote it did not have get the value that it used, and fields that
    have another name since then get that name. It is locked: an unknown field raises
    AttributeError.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(leaf) for name, leaf in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(tuples({RENAMED.get(name, name): value for name, value in tree.items()}))
    for name, value in ADDED.items():
        *groups, last = name.split(".")
        group = functools.reduce(lambda found, each: found.get(each, ConfigDict()), groups, config)
        if last not in group:
            group[last] = value
    return config.lock()


def refuse_changes(
    old: ConfigDict, new: ConfigDict, workdir: pathlib.Path, only: tuple[str, ...] = ("",)
) -> None:
    """Raise InputError naming the fields in which `new` may not differ from the run of `old`.

    `only` limits them to those that begin with one of its strings.
    """
    was, now = dict(flatten(old)), dict(flatten(new))
    changed = [
        f"{name}={shown(was[name])} (now {shown(now[name])})"
        for name in changed_fields(old, new)
        if name.startswith(only)
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run with {', '.join(changed)}; take another --workdir"
            " or give the same values"
        )


def changed_fields(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Return the fields that a run of `old` may not change and in which `new` differs.

    Where `new` leaves the number of classes to the data set (0), it does not differ there.
    """
    was, now = dict(flatten(old)), dict(flatten(new))
    if now["model.num_classes"] == 0:
        now["model.num_classes"] = was["model.num_classes"]
    return [name for name in FIELDS if name not in CHANGEABLE and was[name] != now[name]]


def with_num_classes(config: ConfigDict, number: int) -> ConfigDict:
    """Return `config` with `number` classes where it leaves that to the data set (0).

    Raises InputError where such a network is not possible.
    """
    if config.model.num_classes:
        return config
    found = config.copy_and_resolve_references()
    found.model.num_classes = number
    validate(found)
    return found
