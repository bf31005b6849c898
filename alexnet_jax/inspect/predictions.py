"""Predictions for folders of images, as predictions.csv and a contact sheet.

Only one batch of images is in memory at a time.
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
    """What `write_predictions` has written and skipped."""

    directory: pathlib.Path
    images: int
    shown: int
    not_images: int  # files that are not images by their names
    undecodable: int

    def __str__(self) -> str:
        shown = "all" if self.shown == self.images else f"the first {self.shown:,}"
        return (
            f"images: {self.images:,}; skipped {self.not_images:,} files that are not"
            f" images, {self.undecodable:,} undecodable. Written:"
            f" {self.directory / CSV} and {self.directory / SHEET} ({shown} of them)"
        )


def write_predictions(
    workdir: pathlib.Path,
    paths: Sequence[str],
    out: pathlib.Path,
    show: Callable[[str, Answer], None] = lambda path, answer: None,
) -> Written:
    """Classify the images of `paths` with the best checkpoint of the run in `workdir`.

    Files come first, then the images of each folder and its subfolders, sorted by name. A file of a
    folder that cannot be decoded is named on stderr and skipped. predictions.csv has one line per
    image: `path`, and from the most probable class on `class_1`, `probability_1` to at most
    `class_5`, `probability_5`. It is in UTF-8; bytes of a file's name that are not UTF-8 are
    escaped. A path or a class that a spreadsheet would take for a formula, because it begins with
    '=', '+', '-', '@', a tab or the end of a line, gets a leading apostrophe. predictions.png shows
    the first SHOWN images as the network sees them. Either both files are written completely, in
    place of earlier ones, or neither.

    Args:
      workdir: the directory of a run, finished or not.
      paths: of images and of folders.
      out: the directory of both files; made if it does not exist.
      show: called with path and answer of each image, in the order of predictions.csv, after both
        files are written.

    Raises:
      InputError: `workdir` holds no checkpoint, an image of `paths` cannot be read, a folder holds
        no images, or `out` cannot be written.
    """
    classifier = Classifier(workdir)
    folders = [path for path in paths if pathlib.Path(path).is_dir()]
    files = [path for path in paths if path not in folders]
    sheet = (out / SHEET).resolve()
    for path in folders:
        if not any(is_image for _, is_image in _files(path, sheet)):
            raise InputError(f"{path} holds no files with the extension of an image")
    for path in files:  # before anything is printed or written
        load_image(path, classifier.size)
    counts: collections.Counter[str] = collections.Counter()

    def squares() -> Iterator[tuple[str, np.ndarray]]:
        for path in files:
            yield path, load_image(path, classifier.size)
        for folder in folders:
            for path, is_image in _files(folder, sheet):
                if not is_image:
                    counts["not images"] += 1
                    continue
                try:
                    yield path, load_image(path, classifier.size)
                except InputError as error:
                    counts["undecodable"] += 1
                    print(f"skipped: {error}", file=sys.stderr)

    entries: list[Entry] = []
    with contextlib.ExitStack() as until_shown:
        with whole_files(out) as scratch:
            # On the disk until both files are written, because there may be millions of answers.
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
    """Yield the path of each file in `folder` and below, and whether it counts as an image.

    The extension decides. Hidden files and `sheet`, an earlier contact sheet, do not count. Hidden
    folders are skipped, and so are links to a folder that contains them; `within` identifies these.
    A folder that cannot be listed is named on stderr.
    """
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
                    yield from _files(entry.path, sheet, within)
                continue
            is_file = stat.S_ISREG(status.st_mode)  # reading a pipe might never end
        named = not hidden and pathlib.PurePath(entry.name).suffix.lower() in EXTENSIONS
        ours = entry.name == SHEET and pathlib.Path(entry.path).resolve() == sheet
        yield entry.path, is_file and named and not ours
