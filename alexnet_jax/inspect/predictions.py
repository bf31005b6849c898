"""Predictions for folders of images, as predictions.csv and a contact sheet.

Only one batch of images is in memory at a time.
"""

import collections
import contextlib
import csv
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.errors import InputError
from alexnet_jax.host import whole_files
from alexnet_jax.inspect.contact_sheet import Entry, contact_sheet, thumbnail
from alexnet_jax.inspect.image_files import Found, decoded, image_files
from alexnet_jax.predict import Answer, Classifier, batches
from alexnet_jax.prepare import load_image

CSV, SHEET = "predictions.csv", "predictions.png"
TOP = 5
FORMULA = tuple("=+-@\t\r\n")  # a cell that begins so is one to a spreadsheet
SHOWN = 60  # images on the contact sheet


class Written(NamedTuple):
    """What `write_predictions` has written and skipped.

    Attributes:
      scored, wrong: images in folders named after a class, and those that are not of it by their
        most probable class.
    """

    directory: pathlib.Path
    images: int
    shown: int
    not_images: int  # files that are not images by their names
    undecodable: int
    scored: int = 0
    wrong: int = 0

    def __str__(self) -> str:
        shown = "all" if self.shown == self.images else f"the first {self.shown:,}"
        score = ""
        if self.scored:
            score = (
                f" {self.scored:,} are in folders named after a class: top-1 error"
                f" {self.wrong / self.scored:.2%}."
            )
        return (
            f"images: {self.images:,}; skipped {self.not_images:,} files that are not"
            f" images, {self.undecodable:,} undecodable.{score} Written:"
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
    `class_5`, `probability_5`. If a folder has folders that are named after classes, its images in
    them are scored: after `path` come `label`, the name of that folder, and `correct`, 1 or 0; both
    are empty for other images. The file is in UTF-8; bytes of a file's name that are not UTF-8 are
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
    ours = frozenset({(out / SHEET).resolve()})
    for path in folders:
        if not any(file.is_image for file in image_files(path, ours)):
            raise InputError(f"{path} holds no files with the extension of an image")
    for path in files:  # before anything is printed or written
        load_image(path, classifier.size)
    classes = frozenset(classifier.class_names)
    scores = any((pathlib.Path(path) / name).is_dir() for path in folders for name in classes)
    counts: collections.Counter[str] = collections.Counter()

    def found() -> Iterator[Found]:
        yield from (Found(path, "", True) for path in files)
        for folder in folders:
            for file in image_files(folder, ours):
                counts["not images"] += not file.is_image
                if file.is_image:
                    yield file

    def squares() -> Iterator[tuple[Found, np.ndarray]]:
        for file, square in decoded(found(), classifier.size):
            counts["undecodable"] += square is None
            if square is not None:
                yield file, square

    entries: list[Entry] = []
    with contextlib.ExitStack() as until_shown:
        with whole_files(out) as scratch:
            # On the disk until both files are written, because there may be millions of answers.
            answered = until_shown.enter_context(tempfile.TemporaryFile("w+", dir=out))
            with open_rows(scratch / CSV) as rows:
                rows.writerow(head(min(TOP, len(classifier.class_names)), scores))
                for batch in batches(squares()):
                    answers = classifier([square for _, square in batch], TOP)
                    for (file, square), answer in zip(batch, answers, strict=True):
                        label = file.top if file.top in classes else ""
                        counts["scored"] += label != ""
                        counts["wrong"] += label not in ("", answer[0][0])
                        rows.writerow(row(file.path, answer, label if scores else None))
                        answered.write(json.dumps([file.path, answer]) + "\n")
                        if len(entries) < SHOWN:
                            name = pathlib.Path(file.path).name
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
    skipped = counts["not images"], counts["undecodable"]
    return Written(out, number, len(entries), *skipped, counts["scored"], counts["wrong"])


@contextlib.contextmanager
def open_rows(path: pathlib.Path) -> Iterator[Any]:
    """Yield a csv writer of the new file `path`."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield csv.writer(file)


def head(number: int, scores: bool) -> list[str]:
    """Return the names of the columns of `row`, of `number` classes."""
    classes = [f"{n}_{i + 1}" for i in range(number) for n in ("class", "probability")]
    return ["path", *(["label", "correct"] if scores else []), *classes]


def row(path: str, answer: Answer, label: str | None) -> list[str]:
    """Return the cells of an image: with `label` None without a score, with '' an empty one."""
    correct = "" if not label else str(int(answer[0][0] == label))
    scored = [] if label is None else [_text(label), correct]
    return [_text(path), *scored, *(cell for n, p in answer for cell in (_text(n), f"{p:.6g}"))]


def _text(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell
