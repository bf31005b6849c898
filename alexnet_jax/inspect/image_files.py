"""Image files in folders: found, told their class folder, and decoded by all cores."""

import concurrent.futures
import os
import pathlib
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.host import cores
from alexnet_jax.predict import batches
from alexnet_jax.prepare import EXTENSIONS, load_image


class Found(NamedTuple):
    """A file in a folder.

    Attributes:
      path: of the file.
      top: the folder directly in the searched one that it lies in, at any depth; '' for none. In a
        folder of class folders it is the name of the class.
      is_image: whether it counts as an image.
    """

    path: str
    top: str
    is_image: bool


def image_files(folder: str, ours: frozenset[pathlib.Path] = frozenset()) -> Iterator[Found]:
    """Yield each file in `folder` and below, sorted by name.

    The extension decides what is an image. Hidden files and `ours`, resolved paths of what was
    written there earlier, do not count. Hidden folders are skipped, and so are links to a folder
    that contains them. A folder that cannot be listed is named on stderr.
    """
    for path, is_image in _files(folder, ours, ()):
        parts = pathlib.PurePath(path).relative_to(folder).parts
        yield Found(path, parts[0] if len(parts) > 1 else "", is_image)


def _files(
    folder: str, ours: frozenset[pathlib.Path], within: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, bool]]:
    """Yield path and whether it is an image; `within` identifies the folders around `folder`."""
    try:
        status = pathlib.Path(folder).stat()
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        print(f"skipped: {InputError(f'{folder} ({error.strerror})')}", file=sys.stderr)
        return
    within = (*within, (status.st_dev, status.st_ino))
    for entry in entries:
        hidden = entry.name.startswith(".")
        try:
            status = pathlib.Path(entry.path).stat()
        except OSError:  # such as a link to nothing: decoding it will raise an error that names it
            is_file = True
        else:
            if stat.S_ISDIR(status.st_mode):
                if not hidden and (status.st_dev, status.st_ino) not in within:
                    yield from _files(entry.path, ours, within)
                continue
            is_file = stat.S_ISREG(status.st_mode)  # reading a pipe might never end
        named = not hidden and pathlib.PurePath(entry.name).suffix.lower() in EXTENSIONS
        is_image = is_file and named
        if is_image and any(entry.name == path.name for path in ours):
            is_image = pathlib.Path(entry.path).resolve() not in ours
        yield entry.path, is_image


def decoded(files: Iterable[Found], size: int) -> Iterator[tuple[Found, np.ndarray | None]]:
    """Yield each file with its image, uint8 (size, size, 3), or None where that is damaged.

    A damaged one is named on stderr. One batch is in memory at a time.
    """

    def square(file: Found) -> np.ndarray | InputError:
        try:
            return load_image(file.path, size)
        except InputError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(cores(), "decode") as pool:
        for batch in batches(files):
            for file, image in zip(batch, pool.map(square, batch), strict=True):
                if isinstance(image, InputError):
                    print(f"skipped: {image}", file=sys.stderr)
                    yield file, None
                else:
                    yield file, image
