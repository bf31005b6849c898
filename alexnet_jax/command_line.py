"""The command line of run.py, which is also that of the installed command `alexnet_jax`.

What is wrong with it is one line on stderr, and exit code 2, before anything is computed.
"""

import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from alexnet_jax import config as config_lib
from alexnet_jax import configs
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.exchange import FORMATS
from alexnet_jax.fields import FIELDS, bad_value, is_path, nearest, unknown_field
from alexnet_jax.host import compilation_cache, heap, streams, threads
from alexnet_jax.modes import dispatch

_NO_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's code for it
MODES = ("train", "evaluate", "predict", "summary", "prepare", "profile", "export")
NEED_CONFIG = ("train", "summary", "prepare", "profile")
FLAGS = (
    *("config", "workdir", "mode", "images", "out", "format", "test_crops"),
    *("prepare_shard", "distributed"),
)
BELONG = {  # the modes that other flags are for
    "out": ("predict", "evaluate", "export"),
    "format": ("export",),
    "test_crops": ("evaluate",),
    "prepare_shard": ("prepare",),
    "distributed": ("train",),
}
ANSWERS = ("evaluate", "predict", "summary", "profile")  # modes that are for what they print
RECIPES = pathlib.Path(configs.__path__[0])
# What other programs call a field, by its last word.
OTHER_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_epochs",
    "steps": "num_steps",
    "batch": "batch_size",
    "classes": "model.num_classes",
    "data": "dataset.path",
    "dataset": "dataset.name",
    "resume": "init_from",
    "pretrained": "init_from",
    "weights": "init_from",
}


def run() -> NoReturn:
    """Do what the command line of this process says, and exit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save
    streams.never_fail()
    code = main(sys.argv)
    if code:  # neither threads of a failed save nor other processes are waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Do what the command line says and return the exit code: 0, or 2 for bad input."""
    values = _flags(argv)
    if {"--help", "-h", "-help"} & set(argv):
        print(_help(values))
        return 0
    try:
        arguments = _parse(values, argv)
        heap.keep_on_cpu()
        threads.for_jax()
        compilation_cache.keep()
        dispatch(values.flag_values_dict(), arguments)
        if values["mode"].value in ANSWERS:
            streams.refuse_loss()
    except InputError as error:
        streams.say_last(f"error: {error}")
        return 2
    except OSError as error:  # a full disk, a directory that may not be written
        remedy = limit_met(error)
        streams.say_last(f"error: {InputError(str(error))}{remedy and '; ' + remedy or ''}")
        return 2
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _NO_MEMORY not in str(error):
            raise
        streams.say_last(
            "error: out of memory; take a smaller --config.batch_size, a larger"
            f" --config.accumulate_steps or narrower layers ({InputError(str(error)[:200])})"
        )
        return 2
    except RuntimeError as error:
        if (remedy := limit_met(error)) is None:
            raise
        streams.say_last(f"error: {InputError(str(error)[:200])}: {remedy}")
        return 2
    except KeyboardInterrupt as stopped:  # while files were written, which are removed again
        print("stopped; the same command continues from what is finished", file=sys.stderr)
        return 128 + int(stopped.args[0] if stopped.args else signal.SIGINT)
    return 0


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """Return the config that `arguments` give: --config=RECIPE and --config.FIELD=VALUE.

    A recipe is a path, or the name of one of RECIPES. Raises InputError, naming the field, the
    value or the recipe, where something is wrong with it; config.validate is left to the caller.
    """
    argv = ["run.py", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=_recipe_first(argv))
    _parse_flags(values, _recipe_first(argv))
    return values["config"].value


def _flags(argv: Sequence[str]) -> flags.FlagValues:
    """Return the flags of this command line, not yet parsed."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Recipe: a path, or a name such as alexnet. --config.FIELD=VALUE overrides a field.",
        flag_values=values,
        sys_argv=_recipe_first(argv),
    )
    where: Any = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Directory of the run.", **where)
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", **where)
    flags.DEFINE_multi_string(
        "images",
        [],
        "Images and folders for --mode=predict; for --mode=evaluate a folder of class folders.",
        **where,
    )
    flags.DEFINE_string(
        "out",
        None,
        "For --mode=predict: where predictions.csv and predictions.png go, by default"
        " WORKDIR/predictions; without a folder in --images they are written where this is given."
        " For --mode=evaluate with --images: where its files go, by default WORKDIR/evaluation."
        " For --mode=export: the file.",
        **where,
    )
    flags.DEFINE_boolean(
        "test_crops",
        True,
        "For --mode=evaluate: also the errors of ten crops, unless --test_crops=false.",
        **where,
    )
    flags.DEFINE_enum(
        "format",
        None,
        FORMATS,
        "For --mode=export: what the file is; see docs/weights.md.",
        **where,
    )
    flags.DEFINE_string(
        "prepare_shard",
        None,
        "For --mode=prepare: i/n, prepare part i of n, counted from 0; see docs/data.md.",
        **where,
    )
    flags.DEFINE_boolean(
        "distributed",
        False,
        "One of several processes that JAX finds by SLURM, Open MPI, Kubernetes or Cloud TPU.",
        **where,
    )
    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", **where)
    return values


def _help(values: flags.FlagValues) -> str:
    lines = [
        "Train, evaluate and use AlexNet: run.py --config=RECIPE --workdir=DIR [flags]",
        f"\nrecipes: {', '.join(sorted(_recipes()))}\n\nflags:",
    ]
    for name in FLAGS:
        meaning, *_ = (values[name].help or "").split(";\n")  # absl adds how often it may be given
        lines.append(f"  --{name:<14} {meaning}")
    lines.append("\nfields of a config, each --config.FIELD=VALUE:")
    for name, field in FIELDS.items():
        lines.append(f"  {name:<28} {field.meaning}\n{'':<31}{field.expected}")
    return "\n".join(lines)


def _recipes() -> dict[str, pathlib.Path]:
    """Return the recipes of this package by their names."""
    return {path.stem: path for path in RECIPES.glob("*.py") if path.stem != "__init__"}


def _recipe_first(argv: Sequence[str]) -> list[str]:
    """Return `argv` with a recipe's path in place of its name, before the fields it is given."""
    recipe, others, rest = [], [], iter(argv[1:])
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            others += [argument, *rest]
        elif flag not in ("--config", "-config"):
            others.append(argument)
        elif equals:
            recipe.append(f"{flag}={_path(value)}")
        elif value := next(rest, ""):
            recipe += [flag, _path(value)]
        else:
            others.append(flag)  # to be refused
    return [argv[0], *recipe, *others]


def _path(recipe: str) -> str:
    known = _recipes().get(recipe)
    return recipe if known is None or pathlib.Path(recipe).is_file() else str(known)


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse the flags and return what is left of `argv`; raise InputError for whatever fails."""
    rest = _parse_flags(values, _recipe_first(argv))
    mode = values["mode"].value
    if values["config"].value is not None:
        config_lib.validate(values["config"].value)
    elif mode in NEED_CONFIG:
        raise InputError(f"--mode={mode} needs --config, such as --config=alexnet")
    images = values["images"].value
    if rest and not (mode == "predict" or (mode == "evaluate" and images)):
        raise InputError(f"unexpected argument {rest[0][:200]!r}; flags are written --name=value")
    for name, modes in BELONG.items():
        flag = values[name]
        if flag.value != flag.default and mode not in modes:
            known, given = " or ".join(modes), f"--{name}={flag.value}"[:200]
            raise InputError(f"{given} goes with --mode={known}, not {mode}")
    if mode == "evaluate" and values["out"].value and not images:
        raise InputError(f"--out={values['out'].value}: --mode=evaluate writes there with --images")
    if mode == "evaluate" and images and values["config"].value is not None:
        raise InputError("--images is evaluated with the config of the run: leave out --config")
    return rest


def _parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse flags of which one is the config; return the rest of `argv`."""
    recipe = _recipe(argv)
    _refuse_overrides(argv, recipe)
    if recipe is not None:
        _refuse_no_file(recipe)
    try:
        rest = values(argv)[1:]
        config = values["config"].value  # a recipe that could not be loaded raises here
    except (Exception, SystemExit) as error:  # of the flags, of the config, of the recipe's code
        raise _explained(error, values, recipe) from None
    finally:
        sys.modules.pop("config_config", None)  # the recipe: the next one would run in it
    if recipe is not None and not isinstance(config, ConfigDict):
        raise InputError(f"--config={recipe}: its get_config() returns no ConfigDict")
    return rest


def _recipe(argv: Sequence[str]) -> str | None:
    """Return what the command line gives as --config, None where it gives none."""
    recipe = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument in ("--config", "-config"):
            recipe = following
        elif argument.startswith(("--config=", "-config=")):
            recipe = argument.partition("=")[2]
    return recipe


def _refuse_overrides(argv: Sequence[str], recipe: str | None) -> None:
    """Raise InputError for the first override of a field that does not exist, or of no recipe."""
    groups = {field.rpartition(".")[0] for field in FIELDS} - {""}
    groups |= {group.rpartition(".")[0] for group in groups} - {""}
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if not (argument.startswith("-") and name.startswith("config.")):
            continue
        field = name.removeprefix("config.")
        if field not in FIELDS and field not in groups:
            raise unknown_field(field)
        if recipe is None and not {"--config", "-config"} & set(argv):
            raise InputError(f"{argument[:200]} overrides a recipe; add one: --config=RECIPE")


def _refuse_no_file(recipe: str) -> None:
    """Raise InputError, with the nearest there is, unless the recipe is a file."""
    if is_path(recipe) and pathlib.Path(recipe).is_file():
        return
    names = _recipes()
    paths = {path for name in names if pathlib.Path(path := f"configs/{name}.py").is_file()}
    hint = nearest(recipe, paths) or nearest(pathlib.PurePath(recipe).stem, names)
    hint = hint or f"; the recipes are {', '.join(sorted(names))}"
    what = (
        "is not a file" if is_path(recipe) and pathlib.Path(recipe).exists() else "does not exist"
    )
    raise InputError(f"--config={recipe} {what}{hint}")


def _explained(error: BaseException, values: flags.FlagValues, recipe: str | None) -> InputError:
    """Return what went wrong with the flags or the recipe as one line with its remedy."""
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname.partition(".")[0]
        last = {field.rpartition(".")[2]: field for field in FIELDS}
        field = name if name in FIELDS else OTHER_NAMES.get(name) or last.get(name)
        if field in FIELDS:
            return InputError(f"there is no flag --{name}; did you mean '--config.{field}'?")
        hint = nearest(f"--{name}", [f"--{flag}" for flag in values]) or "; --help lists them"
        return InputError(f"there is no flag --{error.flagname}{hint}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, flags.Error) or "Traceback (most recent call last):" in str(error):
        kind = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        return InputError(f"--config={recipe} cannot be loaded: {kind}{' '.join(lines[-1:])[:500]}")
    value = re.match(r"flag --(config\.)?([^=]+)=(.*?): ", str(error), re.DOTALL)
    if value and value[1] and value[2] in FIELDS:
        return bad_value(value[2], value[3])
    hint = nearest(value[3], MODES) if value and value[2] == "mode" else ""
    return InputError(f"{' '.join(lines)[:500]}{hint}")
