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
    "seed": _integer(0).means(
        "random seed of initial weights, image order, augmentation and dropout"
    ),
    "batch_size": _integer(1).means("global batch size: images per step over all devices"),
    "accumulate_steps": _integer(1).means(
        "gradient accumulation: parts into which each device's batch is divided, to save memory"
    ),
    "num_epochs": _integer(1).means("number of passes over the training set"),
    "num_steps": Field(
        (int, type(None)),
        lambda v: v is None or 1 <= v < 2**31,
        "an integer from 1 to 2147483647; by default num_epochs is used",
    ).means("number of training steps; overrides num_epochs"),
    "init_from": _path(True).means(
        "run directory, checkpoint or weights file from which a new run loads the layers that fit"
    ),
    "dtype": _choice("float32", "bfloat16").means(
        "compute type of the layers; parameters and velocity stay float32"
    ),
    "fused_pooling": _flag().means(
        "whether ReLU, normalization and pooling run as one kernel on an NVIDIA GPU (docs/fused.md)"
    ),
    "parallel": _choice("pmap", "split").means(
        "'pmap': the whole network on each device; 'split': each column on its own device"
    ),
    "learning_rate": _number(0, open_low=True).means(
        "initial learning rate lr; v <- momentum v - weight_decay lr w - lr gradient (section 5)"
    ),
    "momentum": _fraction().means("factor of the previous velocity v in the update"),
    "weight_decay": _number(0).means(
        "weight decay of all parameters that weight_decays does not name"
    ),
    "lr_multipliers": _by_parameter("factors of their learning rate", 2.0).means(
        "learning rate factors of parameters, selected by globs of their names; 0 freezes them"
    ),
    "weight_decays": _by_parameter("their weight decay", 0.0).means(
        "weight decay of parameters, selected by globs of their names; the last match is used"
    ),
    "schedule": _choice("plateau", "epochs").means(
        "'plateau': lower the rate when the validation error stops falling; 'epochs': milestones"
    ),
    "milestones": Field(
        tuple,
        _are_milestones,
        "a tuple of (epoch of at least 2, parameters, factor), such as ((25, '*', 0.1),)",
    ).means(
        "learning rate factors that apply from the start of an epoch, by globs of parameter names"
    ),
    "plateau.factor": _inside().means("factor by which a plateau multiplies the learning rate"),
    "plateau.patience": _integer(1).means(
        "number of consecutive evaluations without improvement that count as a plateau"
    ),
    "plateau.rtol": _inside().means(
        "relative decrease of the validation error that counts as an improvement"
    ),
    "plateau.min_scale": _number(0, 1).means("lower limit of the product of all plateau factors"),
    "eval_every_epochs": _integer(1).means(
        "number of epochs between evaluations on the validation set"
    ),
    "checkpoint_every_steps": _integer(1).means(
        "number of steps between checkpoints; each evaluation also saves one"
    ),
    "checkpoint_keep": _integer(1).means(
        "number of latest checkpoints to keep besides the best; each has 8 bytes per parameter"
    ),
    "log_every_steps": _integer(1).means("number of steps between lines of metrics.jsonl"),
    "on_nan": _choice("stop", "rewind").means(
        "on a NaN or infinity: 'stop', or 'rewind' to the last good checkpoint"
    ),
    "rewind_divisor": Field(
        float, lambda v: 1 < v <= LARGEST, f"a number above 1 and at most {LARGEST:g}"
    ).means("number by which a rewind divides the learning rate"),
    "max_rewinds": _integer(1).means("maximum number of rewinds"),
    "model.num_classes": Field(
        int, lambda v: v == 0 or 2 <= v < 2**31, "an integer from 2 to 2147483647, or 0"
    ).means("number of outputs of the last layer; 0: the number of classes of the data set"),
    "model.groups": Field(int, lambda v: v in (1, 2), "1 or 2").means(
        "number of columns of the network; 2 as on the paper's two GPUs (section 3.5)"
    ),
    "model.cross_layers": Field(
        tuple,
        lambda v: len(set(v)) == len(v) and all(type(name) is str for name in v),
        "a tuple of layers, such as ('conv3',)",
    ).means("with groups=2: the convolutional layers that read both columns"),
    "model.layers": Field(
        tuple,
        _are_layers,
        "a tuple of convolutional layers in order, each conv1 or local1, conv2 or local2, ...",
    ).means("names of the convolutional (conv1, ...) and locally connected (local1, ...) layers"),
    "model.features": _integers(1).means("number of output channels of each of these layers"),
    "model.kernels": _integers(1).means("filter size of each of these layers, in pixels"),
    "model.strides": _integers(1).means("stride of each of these layers, in pixels"),
    "model.padding": _integers(0).means("zero padding of each of these layers, in pixels"),
    "model.ceil_mode": _flag().means(
        "whether output sizes are rounded up; the last window may then overhang the input"
    ),
    "model.stages": Field(
        tuple,
        _are_stages,
        f"for each layer a tuple, without repetition, of {', '.join(map(repr, STAGES))}",
    ).means("operations after each of these layers, in order"),
    "model.hidden": _integers(1).means(
        "number of units of each fully connected layer except the last"
    ),
    "model.dropout": _fraction().means(
        "fraction of the units of model.hidden that each training step drops (section 4.2)"
    ),
    "model.dropout_scaling": _choice("train", "test").means(
        "'test': scale outputs at test time, as in the paper; 'train': by the inverse in training"
    ),
    "model.lrn.k": _number(0, open_low=True).means(
        "k in local response normalization, which divides by (k + alpha sum)^beta (section 3.3)"
    ),
    "model.lrn.n": _integer(1, LONGEST).means("number of neighbouring channels in the sum"),
    "model.lrn.alpha": _number(0).means("alpha, the factor of the sum; it is not divided by n"),
    "model.lrn.beta": _number(0).means("beta, the exponent"),
    "model.lrn.within_groups": _flag().means(
        "with groups=2: whether the sum stays inside a column"
    ),
    "model.spatial_norm.k": _number(0, open_low=True).means(
        "k in spatial normalization: the same formula over the pixels of one feature map"
    ),
    "model.spatial_norm.n": _integer(1, LONGEST).means("window size, in pixels"),
    "model.spatial_norm.alpha": _number(0).means(
        "alpha, the factor of the sum; it is not divided by the number of pixels"
    ),
    "model.spatial_norm.beta": _number(0).means("beta, the exponent"),
    "model.pool.window": _integer(1, WIDEST).means(
        "size of the pooling windows, in pixels (section 3.4)"
    ),
    "model.pool.stride": _integer(1).means("stride of the pooling windows, in pixels"),
    "model.initializer": _choice("normal", "he_normal").means(
        "initial weights: 'normal' is N(0, init_std), 'he_normal' is He et al. 2015"
    ),
    "model.init_std": _number(0, open_low=True).means("standard deviation of the initial weights"),
    "model.init_stds": Field(
        tuple,
        lambda v: all(_is_number(std) and std >= SMALLEST for std in v),
        "an empty tuple, or one of numbers above 0, one per layer",
    ).means("standard deviations of the initial weights, one per layer; overrides init_std"),
    "model.biases": Field(
        tuple, lambda v: all(map(_is_number, v)), "a tuple of finite numbers, one per layer"
    ).means("initial biases, one per layer"),
    "model.input_scale": _number(0, open_low=True).means(
        "factor of the input of the first layer, pixels of 0 to 255 minus the mean"
    ),
    "dataset.name": Field(str, bool, "a tfds name, 'folder' or 'digits'").means(
        "'folder', 'digits' (from scikit-learn) or a name of tensorflow-datasets"
    ),
    "dataset.path": _path(True).means(
        "with name='folder': a folder with train/<class>/ and val/<class>/, or only <class>/"
    ),
    "dataset.val_fraction": _inside().means(
        "fraction of the images to hold out if the folder has no train/, by a hash of their names"
    ),
    "dataset.data_dir": _path(False).means("directory for prepared data sets"),
    "dataset.image_size": _integer(1, 4096).means("side of the stored square images, in pixels"),
    "dataset.encoding": _choice("jpeg", "raw").means("how the square images are stored"),
    "dataset.jpeg_quality": _integer(1, 100).means("JPEG quality, with encoding='jpeg'"),
    "dataset.on_error": _choice("raise", "skip").means(
        "on damaged images and records: 'raise', or 'skip' up to 1 %"
    ),
    "dataset.cache": _choice("none", "device").means(
        "'device': keep the training set in device memory"
    ),
    "augment.crop": _integer(1).means(
        "side of the crops that are the network's input, in pixels (section 4.1)"
    ),
    "augment.flip": _flag().means("whether training images are randomly reflected left to right"),
    "augment.shared_by": _integer(1).means(
        "number of consecutive images that share the same crop and reflection"
    ),
    "augment.mean_crop": _choice("same", "centre").means(
        "crop of the mean image to subtract: at the 'same' position as the image, or the 'centre'"
    ),
    "augment.colour_std": _number(0).means(
        "standard deviation of the PCA colour factors; 0: no colour shifts"
    ),
    "augment.colour_rule": _choice("paper", "released").means(
        "scale of the colour axes; see colour_axes in augment.py"
    ),
    "augment.colour_epochs": Field(
        (int, type(None)),
        lambda v: v is None or 0 <= v < 2**31,
        "an integer from 0 to 2147483647; by default never",
    ).means("number of epochs after which colours are no longer shifted"),
    "augment.test_crops": _choice("ten", "nine").means(
        "number of crops whose predictions the last evaluation averages"
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
