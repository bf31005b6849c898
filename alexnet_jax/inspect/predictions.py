"""The predictions of whole folders of pictures, as predictions.csv and a contact sheet.

However many pictures there are, a batch of them is in memory at a time.
"""

import collections
import contextlib
import csv
import json
import os
import pathlib
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files
from alexnet_jax.inspect.contact_sheet import Entry, contact_sheet, thumbnail
from alexnet_jax.predict import Answer, Classifier, batches
from alexnet_jax.prepare import EXTENSIONS, load_image

CSV, SHEET = "predictions.csv", "predictions.png"
TOP = 5
FORMULA = tuple("=+-@\t\r\n")  # a cell that begins so is one to a spreadsheet
SHOWN = 60  # images on the contact sheet


class Written(NamedTuple):
    """What `write_predictions` has written, and what it has left out."""

    directory: pathlib.Path
    images: int
    shown: int
    not_images: int  # files that are none by their names
    undecodable: int

    def __str__(self) -> str:
        shown = "all" if self.shown == self.images else f"the first {self.shown:,}"
        return (
            f"images: {self.images:,}; left out: {self.not_images:,} files that are not"
            f" images, {self.undecodable:,} that cannot be decoded. Written:"
            f" {self.directory / CSV} and {self.directory / SHEET} ({shown} of them)"
        )


def write_predictions(
    workdir: pathlib.Path,
    paths: Sequence[str],
    out: pathlib.Path,
    show: Callable[[str, Answer], None] = lambda path, answer: None,
) -> Written:
    """Name what the pictures of `paths` show, with the best checkpoint of the run in `workdir`.

    Files come first, then the images of each folder and its subfolders, sorted by name. A file of a
    folder that cannot be decoded is named on stderr and left out. predictions.csv has one line per
    image: `path`, and from the most probable class on `class_1`, `probability_1` to at most
    `class_5`, `probability_5`; in UTF-8, with bytes of a file's name that are not UTF-8 escaped. A
    path or a class that a spreadsheet would take for a formula, because it begins with '=', '+',
    '-', '@', a tab or the end of a line, has an apostrophe before it. predictions.png shows the
    first SHOWN images as they are judged. Both are written whole or not at all, and replace those
    that were there.

    Args:
      workdir: the directory of a run, finished or not.
      paths: of pictures and of folders.
      out: the directory of both files; made if it is not there.
      show: called with path and answer of each image, in the order of predictions.csv, when both
        files are written.

    Raises:
      InputError: `workdir` holds no checkpoint, a picture of `paths` cannot be read, a folder holds
        none, or `out` cannot be written.
    """
    classifier = Classifier(workdir)
    folders = [path for path in paths if pathlib.Path(path).is_dir()]
    files = [path for path in paths if path not in folders]
    sheet = (out / SHEET).resolve()
    for path in folders:
        if not any(is_picture for _, is_picture in _files(path, sheet)):
            raise InputError(f"{path} holds no images, by the extensions of its files")
    for path in files:  # before anything is said or written
        load_image(path, classifier.size)
    counts: collections.Counter[str] = collections.Counter()

    def squares() -> Iterator[tuple[str, np.ndarray]]:
        for path in files:
            yield path, load_image(path, classifier.size)
        for folder in folders:
            for path, is_picture in _files(folder, sheet):
                if not is_picture:
                    counts["not images"] += 1
                    continue
                try:
                    yield path, load_image(path, classifier.size)
                except InputError as error:
                    counts["undecodable"] += 1
                    print(f"left out: {error}", file=sys.stderr)

    entries: list[Entry] = []
    with contextlib.ExitStack() as until_shown:
        with whole_files(out) as scratch:
            # The answers wait on the disk until both files are there: they may be millions.
            answered = until_shown.enter_context(tempfile.TemporaryFile("w+", dir=out))
            with (scratch / CSV).open(
                "w", newline="", encoding="utf-8", errors="backslashreplace"
            ) as file:
                rows = csv.writer(file)
                rows.writerow(_head(min(TOP, len(classifier.class_names))))
                for batch in batches(squares()):
                    answers = classifier([square for _, square in batch], TOP)
                    for (path, square), answer in zip(batch, answers, strict=True):
                        rows.writerow(_row(path, answer))
                        answered.write(json.dumps([path, answer]) + "\n")
                        if len(entries) < SHOWN:
                            name = pathlib.Path(path).name
                            entries.append(Entry(thumbnail(square), name, *answer[0]))
                    counts["images"] += len(batch)
            if not entries:
                raise InputError(f"none of the {counts['undecodable']} images can be decoded")
            number = counts["images"]
            title = f"Images: {number:,}"
            title += f", the first {len(entries)} of them here" if number > len(entries) else ""
            subtitle = f"Most probable class, by step {classifier.step} of {workdir}"
            contact_sheet(entries, title, subtitle).save(scratch / SHEET)
        answered.seek(0)
        for path, answer in map(json.loads, answered):
            show(path, [(name, probability) for name, probability in answer])
    return Written(out, number, len(entries), counts["not images"], counts["undecodable"])


def _head(number: int) -> list[str]:
    return ["path", *(f"{n}_{i + 1}" for i in range(number) for n in ("class", "probability"))]


def _row(path: str, answer: Answer) -> list[str]:
    return [_text(path), *(cell for n, p in answer for cell in (_text(n), f"{p:.6g}"))]


def _text(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _files(
    folder: str, sheet: pathlib.Path, within: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, bool]]:
    """Yield the path of each file in `folder` and below, and whether it counts as a picture.

    By its extension; hidden files do not, nor does `sheet`, the contact sheet of an earlier time.
    Hidden folders are passed over, and so is a link to a folder it lies in, which are `within`. A
    folder that cannot be listed is named on stderr.
    """
    try:
        status = pathlib.Path(folder).stat()
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        print(f"left out: {InputError(f'{folder} ({error.strerror})')}", file=sys.stderr)
        return
    within = (*within, (status.st_dev, status.st_ino))
    for entry in entries:
        hidden = entry.name.startswith(".")
        try:
            status = pathlib.Path(entry.path).stat()
        except OSError:  # as of a link to nothing: it is met again when it is decoded
            is_file = True
        else:
            if stat.S_ISDIR(status.st_mode):
                if not hidden and (status.st_dev, status.st_ino) not in within:
                    yield from _files(entry.path, sheet, within)
                continue
            is_file = stat.S_ISREG(status.st_mode)  # reading a pipe would never end
        named = not hidden and pathlib.PurePath(entry.name).suffix.lower() in EXTENSIONS
        ours = entry.name == SHEET and pathlib.Path(entry.path).resolve() == sheet
        yield entry.path, is_file and named and not ours
