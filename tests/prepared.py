"""Folders of images and what is prepared from them, small enough for the tests."""

import pathlib
import subprocess
import sys
import textwrap

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]


def config(data_dir, name="folder", path="", **fields):
    defaults = {
        "name": name,
        "path": str(path),
        "val_fraction": 0.2,
        "data_dir": str(data_dir),
        "image_size": 8,
        "encoding": "raw",
        "jpeg_quality": 95,
        "on_error": "raise",
    }
    return ml_collections.ConfigDict(defaults | fields)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_folder(
    root, classes=("cat", "dog"), train=3, val=2, size=8, held_out="val", extension=".png"
):
    """Make a folder data set of noise and return its root."""
    for split, number in (("train", train), (held_out, val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = noise(size, size, 3, seed=[len(split), label, i])
                Image.fromarray(pixels).save(root / split / name / f"{i}{extension}")
    return root


def stored(directory, split="train"):
    """Return all records of a prepared set, read by tfds without our code."""
    return list(tfds.builder_from_directory(directory).as_data_source(split))


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def left_behind(data_dir):
    """Return what an aborted preparation has left, except the empty lock files."""
    return [p for p in (data_dir / "alexnet_jax").glob("*") if p.suffix != ".lock"]


def run(code, **options):
    """Run code in a fresh interpreter from the repository's root."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **options)


PREPARE = """
import sys, ml_collections
from alexnet_jax.errors import InputError
from alexnet_jax.prepare import prepare
{before}
try:
    print(prepare(ml_collections.ConfigDict({fields})))
except InputError as error:
    sys.exit(f"InputError: {{error}}")
"""
