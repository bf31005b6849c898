"""What each --mode does with the flags of the command line, and what it prints."""

import contextlib
import pathlib
import re
from typing import Any

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError, printable
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.exchange import FORMATS, export
from alexnet_jax.fields import expanded, is_path
from alexnet_jax.host import processes
from alexnet_jax.inspect import evaluate, profile, summary, write_predictions
from alexnet_jax.predict import predict
from alexnet_jax.prepare import prepare
from alexnet_jax.train import train_and_evaluate


def dispatch(given: dict[str, Any], arguments: list[str]) -> None:
    """Do what `given`, the flags by name, say; `arguments` are the rest of the command line.

    Raises InputError where a flag that the mode needs is missing, or as the mode itself does.
    """
    mode, config = given["mode"], given["config"]
    if mode == "summary":
        print(summary(config))
        return
    if mode == "prepare":
        share = given["prepare_shard"]
        directory = prepare(config.dataset, share)
        if directory.is_dir():
            print(f"prepared data set: {directory}")
        else:
            print(f"share {share} of {directory} is made; when all are, --mode=prepare merges them")
        return
    if not given["workdir"]:
        raise InputError(f"--mode={mode} needs --workdir=DIR")
    workdir = _directory("workdir", given["workdir"])
    if mode == "train":
        distributed = given["distributed"]
        with processes.joined() if distributed else contextlib.nullcontext():
            result = train_and_evaluate(config, workdir)
        if result is not None:
            num_classes = config_lib.load(workdir / "config.json").model.num_classes
            print(
                f"{workdir}: {_errors(result, num_classes)}{_skipped(result)};"
                f" {result['seconds']:.0f} s. The directory contains result.json, metrics.jsonl,"
                " config.json, checkpoints/ and tensorboard/"
            )
    elif mode == "profile":
        print(profile(config, workdir))
    elif mode == "evaluate" and given["images"]:
        _evaluate(workdir, given["images"] + arguments, given["out"], given["test_crops"])
    elif mode == "evaluate":
        result = evaluate_checkpoint(workdir, config, given["test_crops"])
        print(f"{workdir}: {_errors(result, result['num_classes'])}{_skipped(result)}")
    elif mode == "export":
        if not given["format"] or not given["out"]:
            raise InputError(f"--mode=export needs --out=FILE and --format={'|'.join(FORMATS)}")
        print(export(workdir, given["format"], _directory("out", given["out"])))
    else:
        _predict(workdir, given["images"] + arguments, given["out"])


def _evaluate(workdir: pathlib.Path, folders: list[str], out: str | None, test_crops: bool) -> None:
    directory = _output(out, workdir, "evaluation")
    result = evaluate(workdir, [path for path in folders if path], None, directory, test_crops)
    classes = len(result["classes"])
    on = f"{result['count']:,} images of {classes:,} class{'es' * (classes != 1)},"
    print(
        f"{workdir}: {_errors(result, result['num_classes'], on)};"
        f" skipped {result['not_images']:,} files that are not images,"
        f" {result['undecodable']:,} undecodable, {result['outside_classes']:,} in no class folder."
        f" {directory} contains evaluation.json, evaluation.csv, confusion.png and mistakes.png"
    )


def _predict(workdir: pathlib.Path, images: list[str], out: str | None) -> None:
    paths = [path for path in images if path]
    if not paths:
        raise InputError("--mode=predict needs --images=PATH...")
    if out or any(pathlib.Path(path).is_dir() for path in paths):
        directory = _output(out, workdir, "predictions")
        print(write_predictions(workdir, paths, directory, _show))
        return
    for path, answer in zip(paths, predict(workdir, paths), strict=True):
        _show(path, answer)


def _output(out: str | None, workdir: pathlib.Path, name: str) -> pathlib.Path:
    if out:
        return _directory("out", out)
    if workdir.is_file():
        raise InputError(f"{workdir} is a file: name the directory for what is written, --out=DIR")
    return workdir / name


def _directory(flag: str, value: str) -> pathlib.Path:
    if re.match(r"[a-z][a-z0-9+.-]+:", value):
        raise InputError(f"--{flag}={value}: give a directory of this machine, not a URL")
    if not is_path(value):
        raise InputError(f"--{flag}={value} is not the path of a directory")
    return expanded(f"--{flag}", value)


def _show(path: str, answer: list[tuple[str, float]]) -> None:
    print(printable(path))
    for name, probability in answer:
        print(f"  {probability:7.2%}  {printable(name)}")


def _skipped(result: dict[str, Any]) -> str:
    number = result.get("skipped_records", 0)
    return f"; damaged records skipped: {number}" if number else ""


def _errors(result: dict[str, Any], num_classes: int, on: str = "validation") -> str:
    """Return the errors of `result`; of up to five classes without top-5, which is always 0."""
    top5 = f", top-5 {result['top5_error']:.2%}" if num_classes > 5 else ""
    line = f"step {result['step']}: {on} top-1 error {result['top1_error']:.2%}{top5}"
    if "ten_crop_top1_error" not in result:
        return line
    top5 = f", {result['ten_crop_top5_error']:.2%}" if num_classes > 5 else ""
    return f"{line} (test crops: {result['ten_crop_top1_error']:.2%}{top5})"
