"""Errors of a run on any labelled images: a folder per class, or images with their labels.

From folders come evaluation.json, evaluation.csv, confusion.png and mistakes.png. One batch of
images is in memory at a time, and the thumbnails of the worst mistakes.
"""

import collections
import heapq
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.evaluate import evaluate_checkpoint
from alexnet_jax.fields import nearest
from alexnet_jax.host import whole_files
from alexnet_jax.inspect.confusion import confusion_image
from alexnet_jax.inspect.contact_sheet import Entry, contact_sheet, thumbnail
from alexnet_jax.inspect.image_files import Found, decoded, image_files
from alexnet_jax.inspect.predictions import SHOWN, TOP, head, open_rows, row
from alexnet_jax.predict import Answer, Classifier, Images, Run, batches, loaded
from alexnet_jax.prepare import HELD_OUT
from alexnet_jax.rundir import Restored, evaluating

JSON, CSV = "evaluation.json", "evaluation.csv"
CONFUSION, MISTAKES = "confusion.png", "mistakes.png"


class Example(NamedTuple):
    """A labelled image: its path or what names it, its class, and uint8 (size, size, 3)."""

    name: str
    label: str
    square: np.ndarray


def evaluate(
    run: Run,
    images: Images | None = None,
    labels: Iterable[str | int] | None = None,
    out: str | os.PathLike[str] | None = None,
    test_crops: bool = True,
) -> dict[str, Any]:
    """Return the errors of a run's best checkpoint on labelled images.

    Args:
      run: the directory of a run, finished or not; or what `restore` returned.
      images: a folder of class folders, `images/<class>/...`, at any depth below; or with `labels`
        images as `predict` takes them; or None for the validation set of the run, which must be
        prepared, and then `run` is a directory.
      labels: for each image the name or the index of its class. None for a folder.
      out: where to write evaluation.json, evaluation.csv, confusion.png and mistakes.png, all of
        them in place of earlier ones; nothing is written without it.
      test_crops: whether to judge the crops of `config.augment.test_crops` too: ten times the work.

    Returns:
      `step`, `count` (of images), `num_classes` (of the run); `top1_error` and `top5_error`
      (fractions, of the centre crop), with `test_crops` `ten_crop_top1_error` and
      `ten_crop_top5_error`; `classes`: for each class that has images `count`, `top1_error` and
      `top5_error`; `confusion`: for each of them the number of images by predicted class, without
      zeros. For a folder also what was left out: `not_images`, `undecodable` (named on stderr) and
      `outside_classes` (images in no class folder). For the validation set, what
      `evaluate_checkpoint` returns.

    Raises:
      InputError: `run` holds no checkpoint; a folder has images of a class that the run does not
        know, or no images of those that it does; an image or a label is wrong; `out` cannot be
        written.
    """
    if images is None:
        if isinstance(run, Restored) or labels is not None or out is not None:
            raise InputError("the validation set takes the directory of a run, and nothing else")
        return evaluate_checkpoint(pathlib.Path(run), test_crops=test_crops)
    classifier = Classifier(run)
    directory = None if out is None else pathlib.Path(out)
    if labels is None:
        return evaluate_folders(classifier, _folders(images), directory, test_crops)
    examples = _labelled(classifier, images, labels)
    return _written(_Judge(classifier, test_crops), examples, directory)


def evaluate_folders(
    classifier: Classifier,
    folders: Sequence[str],
    out: pathlib.Path | None,
    test_crops: bool,
) -> dict[str, Any]:
    """Return `evaluate` of the class folders in `folders`, with progress on stderr."""
    ours = frozenset((out / name).resolve() for name in (CONFUSION, MISTAKES)) if out else ()
    found = [file for folder in folders for file in image_files(folder, frozenset(ours))]
    images = [file for file in found if file.is_image]
    classes = frozenset(classifier.class_names)
    _refuse_unknown(classifier, folders, images)
    inside = [file for file in images if file.top in classes]
    left_out = {
        "not_images": len(found) - len(images),
        "undecodable": 0,
        "outside_classes": len(images) - len(inside),
    }

    def examples() -> Iterator[Example]:
        with evaluating("evaluation", len(inside)) as report:
            for i, (file, square) in enumerate(decoded(inside, classifier.size)):
                left_out["undecodable"] += square is None
                if square is not None:
                    yield Example(file.path, file.top, square)
                report(i + 1)
        if left_out["undecodable"] == len(inside):
            raise InputError(f"none of the {len(inside)} images can be decoded")

    return _written(_Judge(classifier, test_crops), examples(), out, left_out)


def _folders(images: Any) -> list[str]:
    several = [images] if isinstance(images, str | os.PathLike) else images
    if isinstance(several, list | tuple) and not several:
        raise InputError("there are no images: give a folder with one folder per class")
    for folder in several if isinstance(several, list | tuple) else [None]:
        if not isinstance(folder, str | os.PathLike):
            raise InputError("images without labels: give labels=, or a folder of class folders")
        if not pathlib.Path(folder).is_dir():
            what = "is not a folder" if pathlib.Path(folder).exists() else "does not exist"
            raise InputError(f"{folder} {what}: give a folder with one folder per class")
    return [os.fspath(folder) for folder in several]


def _refuse_unknown(
    classifier: Classifier, folders: Sequence[str], images: Sequence[Found]
) -> None:
    """Raise InputError where a class folder is not of the run, or none is there."""
    known, where = classifier.class_names, ", ".join(folders)
    of_run = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    tops = sorted({file.top for file in images} - {""})
    unknown = [top for top in tops if top not in frozenset(known)]
    if unknown and set(unknown) <= {"train", *HELD_OUT}:
        raise InputError(
            f"{where} has no class folders but {', '.join(unknown)}: give one of these"
        )
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{where} has images of classes that the run does not know: {named}"
            f"{nearest(unknown[0], known)}; the run's are {of_run}; rename or remove the others"
        )
    if not tops:
        raise InputError(f"{where} has no images in class folders; the run's classes are {of_run}")


def _labelled(
    classifier: Classifier, images: Images, labels: Iterable[str | int]
) -> Iterator[Example]:
    """Yield `images` with their `labels`; raise InputError where one of these is wrong."""
    names, given = list(classifier.class_names), list(labels)
    for i, label in enumerate(given):
        if isinstance(label, str):
            if label not in names:
                raise InputError(f"labels[{i}]={label!r} is not a class{nearest(label, names)}")
        elif not isinstance(label, int | np.integer) or not 0 <= label < len(names):
            raise InputError(f"labels[{i}]={label!r}: give names, or 0 to {len(names) - 1}")
    number = 0
    for number, square in enumerate(loaded(images, classifier.size), 1):
        if number > len(given):
            break
        label = given[number - 1]
        name = label if isinstance(label, str) else names[int(label)]
        yield Example(f"image {number - 1}", name, square)
    if number != len(given) or number == 0:
        images_ = "more" if number > len(given) else str(number)
        raise InputError(f"{len(given)} labels and {images_} images: give one label per image")


class _Judge:
    """Answers for examples, counted.

    Attributes:
      classifier: of the run.
      test_crops: whether these are judged too.
      confusion: numbers of images by class and predicted class.
      not_in_top5: by class, those whose class is not among the TOP most probable.
      of_crops: those whose class is not the most probable by test_crops, and not among the TOP.
      worst: the SHOWN mistakes of the highest probability, as a heap.
      count: of images so far.
    """

    def __init__(self, classifier: Classifier, test_crops: bool) -> None:
        self.classifier, self.test_crops = classifier, test_crops
        self.confusion: dict[str, collections.Counter[str]] = {}
        self.not_in_top5: collections.Counter[str] = collections.Counter()
        self.of_crops = [0, 0]
        self.worst: list[tuple[float, int, Entry]] = []
        self.count = 0

    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[Example, Answer]]:
        """Yield each example with the answer for its centre crop, and count it."""
        for batch in batches(examples):
            squares = [example.square for example in batch]
            answers = self.classifier(squares, TOP)
            if self.test_crops:
                of_crops = self.classifier(squares, TOP, test_crops=True)
                for example, answer in zip(batch, of_crops, strict=True):
                    self.of_crops[0] += answer[0][0] != example.label
                    self.of_crops[1] += all(name != example.label for name, _ in answer)
            for example, answer in zip(batch, answers, strict=True):
                self._count(example, answer)
                yield example, answer

    def _count(self, example: Example, answer: Answer) -> None:
        predicted, probability = answer[0]
        self.confusion.setdefault(example.label, collections.Counter())[predicted] += 1
        self.not_in_top5[example.label] += all(name != example.label for name, _ in answer)
        self.count += 1
        worse = len(self.worst) < SHOWN or probability > self.worst[0][0]
        if predicted == example.label or not worse:
            return
        file = f"{example.label}: {pathlib.PurePath(example.name).name}"
        entry = Entry(thumbnail(example.square), file, predicted, probability)
        heapq.heappush(self.worst, (probability, -self.count, entry))
        if len(self.worst) > SHOWN:
            heapq.heappop(self.worst)

    def result(self) -> dict[str, Any]:
        """Return the errors so far, as `evaluate` does."""
        present = [name for name in self.classifier.class_names if name in self.confusion]
        classes: dict[str, dict[str, float]] = {}
        for name in present:
            of_class = self.confusion[name].total()
            classes[name] = {
                "count": of_class,
                "top1_error": (of_class - self.confusion[name][name]) / of_class,
                "top5_error": self.not_in_top5[name] / of_class,
            }
        right = sum(self.confusion[name][name] for name in present)
        errors = {
            "top1_error": (self.count - right) / self.count,
            "top5_error": self.not_in_top5.total() / self.count,
        }
        if self.test_crops:
            errors["ten_crop_top1_error"] = self.of_crops[0] / self.count
            errors["ten_crop_top5_error"] = self.of_crops[1] / self.count
        confusion = {name: dict(self.confusion[name].most_common()) for name in present}
        first = {"step": self.classifier.step, "count": self.count}
        first["num_classes"] = len(self.classifier.class_names)
        return first | errors | {"classes": classes, "confusion": confusion}


def _written(
    judge: _Judge,
    examples: Iterable[Example],
    out: pathlib.Path | None,
    left_out: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Judge `examples` and return the result; with `out` write all files there, or none."""
    if out is None:
        for _ in judge.answers(examples):
            pass
        return judge.result() | (left_out or {})
    number = min(TOP, len(judge.classifier.class_names))
    with whole_files(out) as scratch:
        with open_rows(scratch / CSV) as rows:
            rows.writerow(head(number, True))
            for example, answer in judge.answers(examples):
                rows.writerow(row(example.name, answer, example.label))
        result = judge.result() | (left_out or {})
        config_lib.write_json(result, scratch / JSON)
        title = f"{judge.count:,} images, top-1 error {result['top1_error']:.2%}"
        names = judge.classifier.class_names
        confusion_image(result["confusion"], names, title).save(scratch / CONFUSION)
        entries = [entry for *_, entry in sorted(judge.worst, key=lambda one: (-one[0], -one[1]))]
        wrong = round(result["top1_error"] * judge.count)
        title = f"Mistakes: {wrong:,} of {judge.count:,} images"
        title += f", the {len(entries)} most confident of them here" if wrong > SHOWN else ""
        subtitle = (
            "Each with the predicted class and its probability; below, the class and the file"
        )
        contact_sheet(entries, title, subtitle).save(scratch / MISTAKES)
    return result
