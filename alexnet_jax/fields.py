"""The fields of a config: their types and ranges."""

import difflib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from alexnet_jax.errors import InputError

# Real numbers lie between these, so that float32 holds them and their products.
SMALLEST, LARGEST = 1e-30, 1e9
WIDEST = 32  # pixels of a pooling window: each is a slice of the compiled step, as is each of ...
LONGEST = 255  # ... the neighbours of a normalisation
STAGES = ("relu", "tanh", "lrn", "spatial_norm", "max_pool", "avg_pool")


class Field(NamedTuple):
    """One field: its type, a test of its value, and the words for what passes the test."""

    type: type | tuple[type, ...]
    accepts: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def _integer(low: int, high: int = 2**31 - 1) -> Field:
    return Field(int, lambda v: low <= v <= high, f"an integer from {low} to {high}")


def _number(low: float, high: float = LARGEST, *, open_low: bool = False) -> Field:
    low = SMALLEST if open_low else low
    words = f"a number from {low:g} to {high:g}"
    return Field(float, lambda v: low <= v <= high, words)


def _fraction() -> Field:
    return Field(float, lambda v: 0 <= v < 1, "a number of at least 0 and below 1")


def _inside() -> Field:
    return Field(float, lambda v: SMALLEST <= v < 1, "a number between 0 and 1")


def _choice(*names: str) -> Field:
    return Field(str, lambda v: v in names, "one of " + ", ".join(map(repr, names)), names)


def _integers(low: int, high: int = 65536) -> Field:
    def accepts(v: tuple) -> bool:
        return all(type(i) is int and low <= i <= high for i in v)

    return Field(tuple, accepts, f"a tuple of integers from {low} to {high}, one a layer")


def _flag() -> Field:
    return Field(bool, lambda v: True, "True or False")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def is_path(text: str) -> bool:
    """Return whether `text` can name a file: UTF-8 without a zero byte."""
    try:
        text.encode()  # orbax and array_record take nothing else
    except ValueError:
        return False
    return "\0" not in text


def expanded(name: str, text: str) -> pathlib.Path:
    """Return the path `text`, the value of the flag or field `name`, with what ~ stands for.

    To be called when the path is needed, for not every user has a home directory. Raises InputError
    where there is none.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise InputError(
            f"{name}={text}: there is no such home directory; give the path in full"
        ) from None


def _path(accepts_none: bool) -> Field:
    return Field(str, lambda v: is_path(v) and (accepts_none or v != ""), "a path")


def _are_layers(v: tuple) -> bool:
    names = [(f"conv{i}", f"local{i}") for i in range(1, len(v) + 1)]
    return len(v) >= 1 and all(name in either for name, either in zip(v, names, strict=True))


def _are_stages(v: tuple) -> bool:
    once = all(len(set(stages)) == len(stages) for stages in v)
    return once and all(type(s) is tuple and set(s) <= set(STAGES) for s in v)


def _are_milestones(v: tuple) -> bool:
    epochs = all(type(epoch) is int and 2 <= epoch < 2**31 for epoch, _, _ in v)
    return epochs and _are_factors(tuple(rest for _, *rest in v))


def _are_factors(v: tuple) -> bool:
    return all(type(names) is str and _is_number(f) and f >= 0 for names, f in v)


def _by_parameter(what: str, example: float) -> Field:
    return Field(
        tuple,
        _are_factors,
        f"a tuple of pairs of parameters and {what}, such as (('*/bias', {example}),)",
    )


FIELDS = {
    "seed": _integer(0),
    "batch_size": _integer(1),
    "accumulate_steps": _integer(1),
    "num_epochs": _integer(1),
    "num_steps": Field(
        (int, type(None)),
        lambda v: v is None or 1 <= v < 2**31,
        "an integer from 1 to 2147483647; where it is not given num_epochs counts",
    ),
    "dtype": _choice("float32", "bfloat16"),
    "parallel": _choice("pmap", "split"),
    "learning_rate": _number(0, open_low=True),
    "momentum": _fraction(),
    "weight_decay": _number(0),
    "rate_factors": _by_parameter("factors of their learning rate", 2.0),
    "weight_decays": _by_parameter("their weight decay", 0.0),
    "schedule": _choice("plateau", "epochs"),
    "milestones": Field(
        tuple,
        _are_milestones,
        "a tuple of (epoch of at least 2, parameters, factor), such as ((25, '*', 0.1),)",
    ),
    "plateau.factor": _inside(),
    "plateau.patience": _integer(1),
    "plateau.rtol": _inside(),
    "plateau.min_scale": _number(0, 1),
    "eval_every_epochs": _integer(1),
    "checkpoint_every_steps": _integer(1),
    "log_every_steps": _integer(1),
    "on_nan": _choice("stop", "rewind"),
    "rewind_divisor": Field(
        float, lambda v: 1 < v <= LARGEST, f"a number above 1 and at most {LARGEST:g}"
    ),
    "max_rewinds": _integer(1),
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
    "model.lrn.n": _integer(1, LONGEST),
    "model.lrn.alpha": _number(0),
    "model.lrn.beta": _number(0),
    "model.lrn.within_groups": _flag(),
    "model.spatial_norm.k": _number(0, open_low=True),
    "model.spatial_norm.n": _integer(1, LONGEST),
    "model.spatial_norm.alpha": _number(0),
    "model.spatial_norm.beta": _number(0),
    "model.pool.window": _integer(1, WIDEST),
    "model.pool.stride": _integer(1),
    "model.initializer": _choice("normal", "he_normal"),
    "model.init_std": _number(0, open_low=True),
    "model.init_stds": Field(
        tuple,
        lambda v: all(_is_number(std) and std >= SMALLEST for std in v),
        "an empty tuple, or one of numbers above 0, one a layer",
    ),
    "model.biases": Field(
        tuple, lambda v: all(map(_is_number, v)), "a tuple of finite numbers, one a layer"
    ),
    "model.input_scale": _number(0, open_low=True),
    "dataset.name": Field(str, bool, "a tfds name, 'folder' or 'digits'"),
    "dataset.path": _path(True),
    "dataset.data_dir": _path(False),
    "dataset.image_size": _integer(1, 4096),
    "dataset.encoding": _choice("jpeg", "raw"),
    "dataset.jpeg_quality": _integer(1, 100),
    "dataset.on_error": _choice("raise", "skip"),
    "dataset.cache": _choice("none", "device"),
    "augment.crop": _integer(1),
    "augment.flip": _flag(),
    "augment.shared_by": _integer(1),
    "augment.mean_crop": _choice("same", "centre"),
    "augment.colour_std": _number(0),
    "augment.colour_rule": _choice("paper", "released"),
    "augment.colour_epochs": Field(
        (int, type(None)),
        lambda v: v is None or 0 <= v < 2**31,
        "an integer from 0 to 2147483647; where it is not given all epochs count",
    ),
    "augment.test_crops": _choice("ten", "nine"),
}

# What a continued run may change: how long it is, how a batch is spread over devices and over time
# (sums in another order), what it writes when, where the pictures lie, and what is done about
# damaged ones.
CHANGEABLE = frozenset(
    {
        "num_epochs",
        "num_steps",
        "accumulate_steps",
        "parallel",
        "checkpoint_every_steps",
        "log_every_steps",
        "on_nan",
        "rewind_divisor",
        "max_rewinds",
        "dataset.path",
        "dataset.data_dir",
        "dataset.on_error",
        "dataset.cache",
    }
)

# Fields that configs of earlier versions lack, with the value that these acted by.
ADDED = {"accumulate_steps": 1, "on_nan": "stop", "rewind_divisor": 10.0, "max_rewinds": 3}


def bad_value(name: str, value: Any) -> InputError:
    """Return the error for a field whose value is of a wrong type or out of range."""
    field = FIELDS[name]
    hint = nearest(value, field.choices) if isinstance(value, str) else ""
    return InputError(f"config.{name}={shown(value)}: expected {field.expected}{hint}")


def shown(value: Any) -> str:
    """Return `value` as messages show it, however long it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a tuple that deep
        return "(too long)"
    return text if len(text) <= 200 else text[:200] + " ..."


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the end of a message: the one of `words` that was probably meant, if there is one."""
    near = difflib.get_close_matches(word[:100], words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_field(name: str) -> InputError:
    """Return the error for a dotted field name that does not exist, with the nearest that does."""
    last = name.rpartition(".")[2]  # --config.crop for augment.crop
    same = [f for f in FIELDS if f.rpartition(".")[2] == last]
    hint = f"; did you mean {same[0]!r}?" if same else nearest(name, FIELDS)
    shown = repr(name) if len(name) <= 200 else repr(name[:200]) + " ..."
    return InputError(f"config has no field {shown}{hint or '; alexnet_jax/fields.py lists them'}")
