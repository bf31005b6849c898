"""The fields of a config: their types, ranges and meanings."""

import difflib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

from alexnet_jax.errors import InputError

# Numbers lie between these, so that float32 holds them and their products.
SMALLEST, LARGEST = 1e-30, 1e9
WIDEST = 32  # pixels of a pooling window: each is a slice of the compiled step, as is each of ...
LONGEST = 255  # ... the neighbours of a normalisation
STAGES = ("relu", "tanh", "lrn", "spatial_norm", "max_pool", "avg_pool")


class Field(NamedTuple):
    """One field: its type, a test of its value, the words for what passes it, and its meaning."""

    type: type | tuple[type, ...]
    accepts: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()
    meaning: str = ""

    def means(self, meaning: str) -> Self:
        """Return the field with its meaning, which `--help` shows."""
        return self._replace(meaning=meaning)


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


def _integers(low: int) -> Field:
    high = 65536

    def accepts(v: tuple) -> bool:
        return all(type(i) is int and low <= i <= high for i in v)

    return Field(tuple, accepts, f"a tuple of integers from {low} to {high}, one per layer")


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
    "seed": _integer(0).means("of initial weights, order of images, augmentation and dropout"),
    "batch_size": _integer(1).means("images per step over all devices"),
    "accumulate_steps": _integer(1).means(
        "parts into which a device's images of a step are divided, to save memory"
    ),
    "num_epochs": _integer(1).means("passes over the training set"),
    "num_steps": Field(
        (int, type(None)),
        lambda v: v is None or 1 <= v < 2**31,
        "an integer from 1 to 2147483647; by default num_epochs is used",
    ).means("training steps in place of num_epochs"),
    "init_from": _path(True).means(
        "run directory, checkpoint or weights file that a new run takes fitting layers from"
    ),
    "dtype": _choice("float32", "bfloat16").means(
        "type the layers compute in; parameters and velocity stay float32"
    ),
    "fused_pooling": _flag().means(
        "whether ReLU, normalization and pooling are one kernel on an NVIDIA GPU (docs/fused.md)"
    ),
    "parallel": _choice("pmap", "split").means(
        "'pmap': a whole network per device; 'split': each column on a device of its own"
    ),
    "learning_rate": _number(0, open_low=True).means(
        "initial rate; the velocity is momentum v - weight_decay lr w - lr gradient (section 5)"
    ),
    "momentum": _fraction().means("of the velocity"),
    "weight_decay": _number(0).means("of all parameters that weight_decays does not name"),
    "lr_multipliers": _by_parameter("factors of their learning rate", 2.0).means(
        "factors of the learning rate for parameters, by globs of their names; 0 freezes them"
    ),
    "weight_decays": _by_parameter("their weight decay", 0.0).means(
        "weight decay in place of weight_decay, by globs of names; the last match counts"
    ),
    "schedule": _choice("plateau", "epochs").means(
        "'plateau': divide the rate when validation stops improving; 'epochs': follow milestones"
    ),
    "milestones": Field(
        tuple,
        _are_milestones,
        "a tuple of (epoch of at least 2, parameters, factor), such as ((25, '*', 0.1),)",
    ).means("factors of the rate from the start of an epoch, by globs of names"),
    "plateau.factor": _inside().means("by which the rate is multiplied on a plateau"),
    "plateau.patience": _integer(1).means(
        "evaluations in a row without improvement that make a plateau"
    ),
    "plateau.rtol": _inside().means(
        "relative drop of the validation error that counts as improvement"
    ),
    "plateau.min_scale": _number(0, 1).means("smallest product of all these factors"),
    "eval_every_epochs": _integer(1).means("epochs between evaluations on the validation set"),
    "checkpoint_every_steps": _integer(1).means(
        "steps between checkpoints; evaluations save one too"
    ),
    "checkpoint_keep": _integer(1).means(
        "latest checkpoints that are kept, besides the best; 8 bytes per parameter each"
    ),
    "log_every_steps": _integer(1).means("steps between lines of metrics.jsonl"),
    "on_nan": _choice("stop", "rewind").means(
        "when a number is not finite: 'stop', or 'rewind' to the last good checkpoint"
    ),
    "rewind_divisor": Field(
        float, lambda v: 1 < v <= LARGEST, f"a number above 1 and at most {LARGEST:g}"
    ).means("by which a rewind divides the learning rate"),
    "max_rewinds": _integer(1).means("rewinds before the run stops"),
    "model.num_classes": Field(
        int, lambda v: v == 0 or 2 <= v < 2**31, "an integer from 2 to 2147483647, or 0"
    ).means("outputs of the last layer; 0: as many as the data set has classes"),
    "model.groups": Field(int, lambda v: v in (1, 2), "1 or 2").means(
        "columns of the network: 2 as on the paper's two GPUs (section 3.5)"
    ),
    "model.cross_layers": Field(
        tuple,
        lambda v: len(set(v)) == len(v) and all(type(name) is str for name in v),
        "a tuple of layers, such as ('conv3',)",
    ).means("with groups=2, convolutional layers that read both columns"),
    "model.layers": Field(
        tuple,
        _are_layers,
        "a tuple of convolutional layers in order, each conv1 or local1, conv2 or local2, ...",
    ).means("convolutional (conv1, ...) and locally connected (local1, ...) layers"),
    "model.features": _integers(1).means("channels of each of them"),
    "model.kernels": _integers(1).means("side of the filters of each, in pixels"),
    "model.strides": _integers(1).means("stride of each, in pixels"),
    "model.padding": _integers(0).means("zeros around the input of each, in pixels"),
    "model.ceil_mode": _flag().means(
        "whether output sizes are rounded up, so that the last window overhangs"
    ),
    "model.stages": Field(
        tuple,
        _are_stages,
        f"for each layer a tuple, without repetition, of {', '.join(map(repr, STAGES))}",
    ).means("what follows each convolutional layer, in order"),
    "model.hidden": _integers(1).means("units of the fully connected layers before the last"),
    "model.dropout": _fraction().means(
        "fraction of their units that a training step drops (section 4.2)"
    ),
    "model.dropout_scaling": _choice("train", "test").means(
        "outputs are scaled when testing, as in the paper, or by the inverse when training"
    ),
    "model.lrn.k": _number(0, open_low=True).means(
        "local response normalization divides by (k + alpha sum)^beta (section 3.3)"
    ),
    "model.lrn.n": _integer(1, LONGEST).means("neighbouring channels in the sum"),
    "model.lrn.alpha": _number(0).means("factor of the sum; not divided by n"),
    "model.lrn.beta": _number(0).means("exponent"),
    "model.lrn.within_groups": _flag().means(
        "with groups=2, whether the sum stays inside a column"
    ),
    "model.spatial_norm.k": _number(0, open_low=True).means(
        "the same over the pixels of one feature map"
    ),
    "model.spatial_norm.n": _integer(1, LONGEST).means("side of the window, in pixels"),
    "model.spatial_norm.alpha": _number(0).means(
        "factor of the sum; not divided by the number of pixels"
    ),
    "model.spatial_norm.beta": _number(0).means("exponent"),
    "model.pool.window": _integer(1, WIDEST).means(
        "side of a pooling window, in pixels (section 3.4)"
    ),
    "model.pool.stride": _integer(1).means("pixels between windows"),
    "model.initializer": _choice("normal", "he_normal").means(
        "of the weights: N(0, init_std), or He et al. 2015"
    ),
    "model.init_std": _number(0, open_low=True).means("standard deviation of the initial weights"),
    "model.init_stds": Field(
        tuple,
        lambda v: all(_is_number(std) and std >= SMALLEST for std in v),
        "an empty tuple, or one of numbers above 0, one per layer",
    ).means("one per layer in place of init_std"),
    "model.biases": Field(
        tuple, lambda v: all(map(_is_number, v)), "a tuple of finite numbers, one per layer"
    ).means("initial biases, one per layer"),
    "model.input_scale": _number(0, open_low=True).means(
        "factor of the pixels, 0 to 255 minus the mean, before the first layer"
    ),
    "dataset.name": Field(str, bool, "a tfds name, 'folder' or 'digits'").means(
        "'folder', 'digits' (of scikit-learn) or a tensorflow-datasets name"
    ),
    "dataset.path": _path(True).means(
        "for name='folder': holds train/<class>/ and val/<class>/, or <class>/ alone"
    ),
    "dataset.val_fraction": _inside().means(
        "fraction of the images of a folder without train/ to hold out, by a hash of their names"
    ),
    "dataset.data_dir": _path(False).means("directory of the prepared data sets"),
    "dataset.image_size": _integer(1, 4096).means("side of the stored squares, in pixels"),
    "dataset.encoding": _choice("jpeg", "raw").means("how squares are stored"),
    "dataset.jpeg_quality": _integer(1, 100).means("of encoding='jpeg'"),
    "dataset.on_error": _choice("raise", "skip").means(
        "damaged images and records: 'raise', or 'skip' up to 1 %"
    ),
    "dataset.cache": _choice("none", "device").means(
        "'device': the training set is kept in device memory"
    ),
    "augment.crop": _integer(1).means(
        "side of the crops that the network sees, in pixels (section 4.1)"
    ),
    "augment.flip": _flag().means("whether training reflects images left to right at random"),
    "augment.shared_by": _integer(1).means("consecutive images that share crop and reflection"),
    "augment.mean_crop": _choice("same", "centre").means(
        "crop of the mean image that is subtracted: at the 'same' place, or the 'centre'"
    ),
    "augment.colour_std": _number(0).means(
        "standard deviation of the PCA colour factors; 0 for none"
    ),
    "augment.colour_rule": _choice("paper", "released").means(
        "scale of the colour axes, see augment.colour_axes"
    ),
    "augment.colour_epochs": Field(
        (int, type(None)),
        lambda v: v is None or 0 <= v < 2**31,
        "an integer from 0 to 2147483647; by default never",
    ).means("epochs after which colours are no longer shifted"),
    "augment.test_crops": _choice("ten", "nine").means(
        "crops whose predictions the last evaluation averages"
    ),
}

# What a resumed run may change: how long it is, how a batch is spread over devices and over time
# (sums in another order), by which kernels it is computed, what it writes when, where the images
# lie, and what is done about damaged ones.
CHANGEABLE = frozenset(
    {
        "num_epochs",
        "num_steps",
        "accumulate_steps",
        "fused_pooling",
        "parallel",
        "checkpoint_every_steps",
        "checkpoint_keep",
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

RENAMED = {"rate_factors": "lr_multipliers"}  # fields of configs of earlier versions

# Fields that configs of earlier versions lack, with the value that those versions used.
ADDED = {
    "accumulate_steps": 1,
    "fused_pooling": False,
    "checkpoint_keep": 2,
    "init_from": "",
    "on_nan": "stop",
    "rewind_divisor": 10.0,
    "max_rewinds": 3,
    "dataset.val_fraction": 0.2,  # which a folder with train/ does not use; others were refused
}


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
    by_lower = {each.lower(): each for each in words}
    near = difflib.get_close_matches(word[:100].lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def unknown_field(name: str) -> InputError:
    """Return the error for a dotted field name that does not exist, with the nearest that does."""
    last = name.rpartition(".")[2]  # --config.crop for augment.crop
    same = [RENAMED[name]] if name in RENAMED else []
    same += [f for f in FIELDS if f.rpartition(".")[2] == last]
    hint = f"; did you mean {same[0]!r}?" if same else nearest(name, FIELDS)
    shown = repr(name) if len(name) <= 200 else repr(name[:200]) + " ..."
    return InputError(f"config has no field {shown}{hint or '; alexnet_jax/fields.py lists them'}")
