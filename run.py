"""Train, evaluate and use AlexNet from the command line.

python run.py --config=configs/quickstart.py --workdir=runs/quickstart
python run.py --config=configs/alexnet.py --workdir=DIR --config.batch_size=256
python run.py --mode=predict --workdir=DIR --images=cat.jpg dog.jpg
"""

import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from alexnet_jax.errors import InputError

MODES = ("train", "evaluate", "predict", "summary", "prepare")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, such as configs/alexnet.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_IMAGES = flags.DEFINE_multi_string("images", [], "Pictures for --mode=predict.")


def main(argv: list[str]) -> int:
    """Do what the command line says and return the exit code: 0, or 2 for bad input."""
    if "--help" in argv or "-h" in argv:
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n")
        return 0
    try:
        _dispatch(_parse(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a directory that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while nothing was running yet that could be saved
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags and return what is left of `argv`; raise InputError for whatever fails."""
    from alexnet_jax import config as config_lib

    logging.use_absl_handler()
    try:
        rest = flags.FLAGS(argv)[1:]
        if _CONFIG.value is not None:  # a recipe that could not be loaded raises here
            config_lib.validate(_CONFIG.value)
    except flags.Error as error:
        raise InputError(str(error).splitlines()[0]) from None
    except AttributeError as error:  # an override of a field that the recipe does not have
        unknown = _unknown_override(argv)
        if unknown is None:  # the recipe's own code
            raise InputError(f"--config cannot be loaded: {error}") from None
        raise config_lib.unknown_field(unknown) from None
    except (OSError, SyntaxError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"--config cannot be loaded: {lines[-1]}") from None
    if rest and _MODE.value != "predict":
        raise InputError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return rest


def _unknown_override(argv: list[str]) -> str | None:
    """Return the first field among the overrides on the command line that no config has."""
    from alexnet_jax import config as config_lib

    names = [a.lstrip("-").partition("=")[0] for a in argv]
    fields = [n.removeprefix("config.") for n in names if n.startswith("config.")]
    return next((field for field in fields if field not in config_lib.FIELDS), None)


def _dispatch(images: list[str]) -> None:
    config = _CONFIG.value
    if config is None and _MODE.value in ("train", "summary", "prepare"):
        raise InputError(
            f"--mode={_MODE.value} needs --config, such as --config=configs/alexnet.py"
        )
    if _MODE.value == "summary":
        from alexnet_jax.summary import summary

        print(summary(config))
        return
    if _MODE.value == "prepare":
        from alexnet_jax.prepare import prepare

        print(f"prepared data set: {prepare(config.dataset)}")
        return
    if not _WORKDIR.value:
        raise InputError(f"--mode={_MODE.value} needs --workdir=DIR")
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    if _MODE.value == "train":
        from alexnet_jax.train import train_and_evaluate

        result = train_and_evaluate(config, workdir)
        if result is not None:
            print(
                f"{workdir}: {_errors(result)}; {result['seconds']:.0f} s. It holds result.json,"
                " metrics.jsonl, config.json, checkpoints/ and tensorboard/"
            )
    elif _MODE.value == "evaluate":
        from alexnet_jax.evaluate import evaluate_checkpoint

        result = evaluate_checkpoint(workdir, config)
        if result is not None:
            print(f"{workdir}: {_errors(result)}")
    else:
        from alexnet_jax.predict import predict

        paths = _IMAGES.value + images
        if not paths:
            raise InputError("--mode=predict needs --images=PATH...")
        for path, answer in zip(paths, predict(workdir, paths), strict=True):
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")


def _errors(result: dict) -> str:
    return (
        f"step {result['step']}: validation top-1 error {result['top1_error']:.2%},"
        f" top-5 {result['top5_error']:.2%} (ten crops: {result['ten_crop_top1_error']:.2%},"
        f" {result['ten_crop_top5_error']:.2%})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
