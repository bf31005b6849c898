"""Damage to the files below a directory, and odd files in a folder of images."""

import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable

import numpy as np
from PIL import Image

JSON = ("", "null", "[]", "{}", "3", '"x"', "[[[[", '{"seed": 0}', "[" * 100_000, "\ufeff{}", "NaN")


def damage(root: pathlib.Path, rng: random.Random) -> str:
    """Damage one or two of the files below `root` and return how."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    file, other = rng.sample(files, 2)
    content = file.read_bytes()
    how = rng.choice(sorted(WAYS))
    WAYS[how](file, other, content, rng)
    return f"{how}: {file.relative_to(root)}"


def _flip(file, other, content, rng):
    changed = bytearray(content or b" ")
    for _ in range(rng.choice((1, 1, 1, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    file.write_bytes(changed)


def _swap(file, other, content, rng):
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _replace_by_link(file, other, content, rng):
    file.unlink()
    file.symlink_to(rng.choice((file.name, "nothing")))


def _replace_by_directory(file, other, content, rng):
    file.unlink()
    file.mkdir()


def _zero(file, other, content, rng):
    start = rng.randrange(len(content) + 1)
    file.write_bytes(content[:start] + bytes(len(content) - start))


def _leaf(file, other, content, rng):
    """Give a value somewhere in a JSON another type, or change the file's text if it is none."""
    try:
        tree = json.loads(content)
    except ValueError:
        file.write_text("no JSON")
        return
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if places:
        node, key = rng.choice(places)
        node[key] = rng.choice((None, -1, 0, 1.5, 10**30, "x", "", [], {}, [1], True, float("nan")))
    file.write_text(json.dumps(tree))


WAYS: dict[str, Callable] = {
    "flipped": _flip,
    "flipped again": _flip,
    "cut": lambda f, o, c, rng: f.write_bytes(c[: rng.randrange(len(c) + 1)]),
    "emptied": lambda f, o, c, rng: f.write_bytes(b""),
    "extended": lambda f, o, c, rng: f.write_bytes(c + rng.randbytes(rng.randrange(1, 100))),
    "deleted": lambda f, o, c, rng: f.unlink(),
    "swapped": _swap,
    "made a link": _replace_by_link,
    "made a directory": _replace_by_directory,
    "zeroed": _zero,
    "made other JSON": lambda f, o, c, rng: f.write_text(rng.choice(JSON), encoding="utf-8"),
    "given another value": _leaf,
    "its folder emptied": lambda f, o, c, rng: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in f.parent.iterdir()
    ],
}


def image(path: pathlib.Path, value: int) -> None:
    """Write 4 x 4 pixels of one grey as a PNG whatever the name."""
    with path.open("wb") as file:
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "PNG")


NAMES = (
    "plain.png",
    "PLAIN.PNG",
    "шар.png",
    "כלב.png",
    "\u202egnp.png",  # right to left: reads as another extension
    "two\nlines.png",
    "\x1b[31mred.png",
    "e\u0301.png",
    "\u00e9.png",
    "-rf.png",
    "%s{}.png",
    " .png",
    "x" * 251 + ".png",
    "字" * 83 + ".png",
    "\udcff\udcfe.png",
    "🐈.jpeg",
)

# What is put into a class folder: (make(path), does it count as a damaged image?)
ODDITIES: dict[str, tuple[Callable[[pathlib.Path], object], bool]] = {
    "link to itself.png": (lambda p: p.symlink_to(p.name), True),
    "link to nothing.png": (lambda p: p.symlink_to("nothing"), True),
    "empty.png": (lambda p: p.touch(), True),
    "text.png": (lambda p: p.write_text("not an image"), True),
    "html.jpg": (lambda p: p.write_text("<html>" * 99), True),
    "folder.png": (lambda p: p.mkdir(), False),
    "deep.png": (lambda p: (p / ("d" * 200) / ("e" * 200)).mkdir(parents=True), False),
    "link to a folder.png": (lambda p: p.symlink_to(".."), False),
    "pipe.png": (lambda p: os.mkfifo(p), False),
    "device.png": (lambda p: p.symlink_to("/dev/zero"), False),
    "notes.txt": (lambda p: p.write_text("x"), False),
    ".hidden.png": (lambda p: p.write_text("x"), False),
    "no extension": (lambda p: p.write_text("x"), False),
}
CLASSES = (
    "cat",
    "dog",
    "Cat",
    "cat ",
    " cat",
    "כלב",
    "-",
    "{}",
    "名" * 80,
    "a.b",
    "train",
    "e\u0301",
)
BAD_CLASSES = ("two\nlines", "\udcff", "\u202eright", "a\tb", "\x1b[0m")
