"""Train, evaluate and use AlexNet from the command line.

python run.py --config=configs/quickstart.py --workdir=runs/quickstart
python run.py --config=configs/alexnet.py --workdir=DIR --config.batch_size=256
python run.py --mode=predict --workdir=DIR --images=cat.jpg dog.jpg
python run.py --mode=predict --workdir=DIR --images=FOLDER --out=OUT

Exit codes: 0 done, or stopped by SIGINT or SIGTERM with everything saved; 2 bad input, a disk that
is full, numbers that are not finite: the line says what to do; 3 another process of a run of
several has ended; 130 a picture's prediction or a summary interrupted.
"""

import contextlib
import os
import pathlib
import re
import signal
import sys

if __name__ == "__main__":  # the imports take seconds
    for _descriptor in (0, 1, 2):
        try:
            os.fstat(_descriptor)
        except OSError:  # it is closed: what is written to it would go to the next file opened
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)

    def _leave(*_: object) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"stopped before anything was begun\n")
        os._exit(0)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _leave)

import jax
from absl import flags
from ml_collections import config_flags

from alexnet_jax import config as config_lib
from alexnet_jax import heap, processes, programs, streams, threads
from alexnet_jax.errors import InputError, limit_met
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.fields import FIELDS, bad_value, expanded, is_path, nearest, unknown_field
from alexnet_jax.predict import predict
from alexnet_jax.predictions import write_predictions
from alexnet_jax.prepare import prepare
from alexnet_jax.profile import profile
from alexnet_jax.signals import as_interrupts, leave
from alexnet_jax.summary import summary
from alexnet_jax.train import train_and_evaluate

_NO_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's code for it
MODES = ("train", "evaluate", "predict", "summary", "prepare", "profile")
ANSWERS = ("evaluate", "predict", "summary", "profile")  # modes that are for what they print
_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/alexnet.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_PREPARE_SHARD = flags.DEFINE_string(
    "prepare_shard", None, "For --mode=prepare: i/n, one of n shares, i from 0; see docs/data.md."
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "One of several processes, as JAX finds them: SLURM, Open MPI, Kubernetes, Cloud TPU.",
)
_IMAGES = flags.DEFINE_multi_string("images", [], "Pictures and folders for --mode=predict.")
_OUT = flags.DEFINE_string(
    "out",
    None,
    "For --mode=predict: where predictions.csv and predictions.png go, by default"
    " WORKDIR/predictions; without a folder in --images they are written where this is given.",
)


def main(argv: list[str]) -> int:
    """Do what the command line says and return the exit code: 0, or 2 for bad input."""
    if "--help" in argv or "-h" in argv:
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n")
        return 0
    try:
        images = _parse(argv)
        heap.keep()
        threads.for_jax()
        programs.keep()
        _dispatch(images)
        if _MODE.value in ANSWERS:
            streams.refuse_loss()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a directory that may not be written
        remedy = limit_met(error)
        print(f"error: {InputError(str(error))}{remedy and '; ' + remedy or ''}", file=sys.stderr)
        return 2
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _NO_MEMORY not in str(error):
            raise
        print(
            "error: the memory does not suffice; take a smaller --config.batch_size, or narrower"
            f" layers ({InputError(str(error)[:200])})",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        if (remedy := limit_met(error)) is None:
            raise
        print(f"error: {InputError(str(error)[:200])}: {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or while preparing
        if _MODE.value in ("predict", "summary"):
            return 130
        print("stopped; the same command goes on from what is finished", file=sys.stderr)
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags and return what is left of `argv`; raise InputError for whatever fails."""
    recipe = _recipe(argv)
    try:
        if recipe is not None:
            _refuse_no_file(recipe)
        rest = flags.FLAGS(argv)[1:]
        if _CONFIG.value is not None:  # a recipe that could not be loaded raises here
            config_lib.validate(_CONFIG.value)
        elif recipe is not None:
            raise InputError(f"--config={recipe}: its get_config() returns nothing")
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of the flags, of the config, of the recipe's code
        raise _explained(error, argv, recipe) from None
    if rest and _MODE.value != "predict":
        raise InputError(f"unexpected argument {rest[0][:200]!r}; flags are written --name=value")
    if _DISTRIBUTED.value and _MODE.value != "train":
        raise InputError(f"--distributed goes with --mode=train, not {_MODE.value}")
    if _OUT.value is not None and _MODE.value != "predict":
        raise InputError(f"--out={_OUT.value} goes with --mode=predict, not {_MODE.value}")
    return rest


def _recipe(argv: list[str]) -> str | None:
    """Return what the command line gives as --config, None where it gives none."""
    recipe = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument in ("--config", "-config"):
            recipe = following
        elif argument.startswith(("--config=", "-config=")):
            recipe = argument.partition("=")[2]
    return recipe


def _refuse_no_file(recipe: str) -> None:
    """Raise InputError, with the nearest there is, unless the recipe is a file."""
    if is_path(recipe) and pathlib.Path(recipe).is_file():
        return
    recipes = pathlib.Path(__file__).parent.glob("configs/*.py")
    names = {f"configs/{path.name}" for path in recipes} - {"configs/__init__.py"}
    hint = nearest(recipe, names) or "; the recipes are in configs/"
    raise InputError(f"--config={recipe} is no file{hint}")


def _explained(error: BaseException, argv: list[str], recipe: str | None) -> InputError:
    """Return what went wrong with the flags or the recipe as one line with its remedy."""
    unknown = _unknown_override(argv)
    if unknown is not None:
        return unknown_field(unknown)
    if isinstance(error, flags.UnrecognizedFlagError):
        ours = [flag.name for flag in (_CONFIG, _WORKDIR, _MODE, _IMAGES)]
        ours += [flag.name for flag in (_PREPARE_SHARD, _DISTRIBUTED, _OUT)]
        hint = nearest(error.flagname.partition(".")[0], ours)
        return InputError(f"there is no flag --{error.flagname}{hint or '; --help lists them'}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, flags.Error) or "Traceback (most recent call last):" in str(error):
        kind = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        return InputError(f"--config={recipe} cannot be loaded: {kind}{' '.join(lines[-1:])[:500]}")
    value = re.match(r"flag --(config\.)?([^=]+)=(.*?): ", str(error), re.DOTALL)
    if value and value[1] and value[2] in FIELDS:
        return bad_value(value[2], value[3])
    hint = nearest(value[3], MODES) if value and value[2] == _MODE.name else ""
    return InputError(f"{' '.join(lines)[:500]}{hint}")


def _unknown_override(argv: list[str]) -> str | None:
    """Return the first field among the overrides on the command line that no config has."""
    names = [a.lstrip("-").partition("=")[0] for a in argv if a.startswith("-")]
    fields = [n.removeprefix("config.") for n in names if n.startswith("config.")]
    groups = {field.rpartition(".")[0] for field in FIELDS} - {""}
    groups |= {group.rpartition(".")[0] for group in groups} - {""}
    return next((f for f in fields if f not in FIELDS and f not in groups), None)


def _dispatch(images: list[str]) -> None:
    config = _CONFIG.value
    if config is None and _MODE.value in ("train", "summary", "prepare", "profile"):
        raise InputError(
            f"--mode={_MODE.value} needs --config, such as --config=configs/alexnet.py"
        )
    if _PREPARE_SHARD.value is not None and _MODE.value != "prepare":
        raise InputError(f"--prepare_shard={_PREPARE_SHARD.value} goes with --mode=prepare")
    if _MODE.value == "summary":
        print(summary(config))
        return
    if _MODE.value == "prepare":
        share = _PREPARE_SHARD.value
        directory = prepare(config.dataset, share)
        if directory.is_dir():
            print(f"prepared data set: {directory}")
        else:
            print(f"share {share} of {directory} is made; when all are, --mode=prepare merges them")
        return
    if not _WORKDIR.value:
        raise InputError(f"--mode={_MODE.value} needs --workdir=DIR")
    workdir = _directory("workdir", _WORKDIR.value)
    if _MODE.value == "train":
        with processes.joined() if _DISTRIBUTED.value else contextlib.nullcontext():
            result = train_and_evaluate(config, workdir)
        if result is not None:
            print(
                f"{workdir}: {_errors(result)}{_skipped(result)}; {result['seconds']:.0f} s. It"
                " holds result.json, metrics.jsonl, config.json, checkpoints/ and tensorboard/"
            )
    elif _MODE.value == "profile":
        print(profile(config, workdir))
    elif _MODE.value == "evaluate":
        result = evaluate_checkpoint(workdir, config)
        print(f"{workdir}: {_errors(result)}{_skipped(result)}" if result else "stopped")
    else:
        paths = [path for path in _IMAGES.value + images if path]
        if not paths:
            raise InputError("--mode=predict needs --images=PATH...")
        if _OUT.value or any(pathlib.Path(path).is_dir() for path in paths):
            out = _directory("out", _OUT.value) if _OUT.value else workdir / "predictions"
            print(write_predictions(workdir, paths, out, _show))
            return
        for path, answer in zip(paths, predict(workdir, paths), strict=True):
            _show(path, answer)


def _directory(flag: str, value: str) -> pathlib.Path:
    # tensorboardX takes a path that begins with s3: or gs: to another machine.
    if "://" in value or value.startswith(("s3:", "gs:")):
        raise InputError(f"--{flag}={value}: give a directory of this machine, not a URL")
    if not is_path(value):
        raise InputError(f"--{flag}={value} is no path: give that of a directory")
    return expanded(f"--{flag}", value)


def _show(path: str, answer: list[tuple[str, float]]) -> None:
    print(path)
    for name, probability in answer:
        print(f"  {probability:7.2%}  {name}")


def _skipped(result: dict) -> str:
    number = result.get("skipped_records", 0)
    return f"; damaged records skipped: {number}" if number else ""


def _errors(result: dict) -> str:
    return (
        f"step {result['step']}: validation top-1 error {result['top1_error']:.2%},"
        f" top-5 {result['top5_error']:.2%} (ten crops: {result['ten_crop_top1_error']:.2%},"
        f" {result['ten_crop_top5_error']:.2%})"
    )


if __name__ == "__main__":
    as_interrupts()
    streams.never_fail()
    code = main(sys.argv)
    leave(code, at_once=processes.failed())
