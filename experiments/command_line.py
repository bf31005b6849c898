"""The command lines of experiments, and the configs that run.py makes of its own.

What is wrong with either is an InputError of one line.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.command_line import read_config as parsed
from alexnet_jax.errors import InputError
from alexnet_jax.fields import FIELDS, bad_value
from alexnet_jax.host import as_interrupts

ANY_RECIPE = "alexnet"  # types are alike


def path(text: str) -> pathlib.Path:
    """Return the path that `text` is; a shell does not expand the ~ of --workdir=~/x."""
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:  # no such user, whose home ~user would be
        return pathlib.Path(text)


class Parser(argparse.ArgumentParser):
    """A parser of a command line that raises InputError for bad input."""

    def __init__(self, description: str | None, **options: Any) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of printing the usage."""
        raise InputError(f"{message}; --help lists the flags")


class TrialsParser(Parser):
    """The flags of the experiments that train trials."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description)
        self.add_argument("--data", help="a folder of images, or a tfds name; default: recipe's")
        self.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
        self.add_argument("--workdir", type=path, help="for the run directories")
        self.add_argument("--out", type=path, help="of the results, without extension")
        self.add_argument(
            "--report", action="store_true", help="write the results there are; train nothing"
        )

    def given(self) -> tuple[argparse.Namespace, tuple[str, ...]]:
        """Return the arguments of this process, and the overrides of the recipe among them."""
        overrides = [a for a in sys.argv[1:] if a.startswith("--config.")]
        arguments, rest = self.parse_known_args([a for a in sys.argv[1:] if a not in overrides])
        if rest:
            raise InputError(
                f"unexpected argument {rest[0]!r}; seeds are given as --seeds 0 1 2, fields of the"
                " recipe as --config.FIELD=VALUE"
            )
        for override in overrides:
            if "=" not in override:
                raise InputError(f"{override}: fields are given as --config.FIELD=VALUE")
            if field(override) == "seed":
                raise InputError(f"{override}: seeds are given as --seeds 0 1 2")
        if arguments.out is not None and arguments.out.name in ("", ".."):
            raise InputError(f"--out={arguments.out}: give the path of files, without extension")
        if len(set(arguments.seeds)) < len(arguments.seeds):
            raise InputError(f"--seeds names a seed twice: {arguments.seeds}")
        every = (*dataset(arguments.data), *overrides)
        # Of a field given twice the last counts; run.py joins tuples that are given twice.
        return arguments, tuple({field(override): override for override in every}.values())


def dataset(data: str | None) -> tuple[str, ...]:
    """Return the overrides by which a recipe reads `data`, a folder or a name; () for its own."""
    if data is None:
        return ()
    folder = path(data)
    if folder.is_dir():
        return ("--config.dataset.name=folder", f"--config.dataset.path={folder.resolve()}")
    if data.startswith(("/", ".", "~")):
        raise InputError(f"--data={data}: the folder does not exist")
    return (f"--config.dataset.name={data}", "--config.dataset.path=")


def read_config(arguments: list[str]) -> ConfigDict:
    """Return the config that run.py takes from its command line `arguments`, valid.

    Raises InputError naming what is wrong.
    """
    config = parsed(arguments)
    config_lib.validate(config)
    return config


def value(name: str, text: str) -> Any:
    """Return what `--config.name=text` means to run.py; raise InputError where it is refused.

    What is in its range may yet not go with other fields.
    """
    config = parsed([f"--config={ANY_RECIPE}", f"--config.{name}={text}"])
    found = dict(config_lib.flatten(config))[name]
    try:
        accepted = FIELDS[name].accepts(found)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        accepted = False
    if not accepted:
        raise bad_value(name, text)
    return found


def field(override: str) -> str:
    """Return FIELD of '--config.FIELD=VALUE'."""
    return override.removeprefix("--config.").partition("=")[0]


def without_places(overrides: Iterable[str]) -> list[str]:
    """Return `overrides` without paths, which do not belong in a result."""
    places = ("dataset.path", "dataset.data_dir", "init_from")
    return [o for o in overrides if field(o) not in places]


def main(experiment: Callable[[], int]) -> NoReturn:
    """Leave with the exit code of `experiment`: 2, and one line, for bad input."""
    as_interrupts()
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs, other processes
    try:
        code = experiment()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:  # while nothing was being trained
        code = 130
    sys.exit(code)
