"""A confusion matrix as an image, for two classes or a thousand."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alexnet_jax.inspect.contact_sheet import fitted

MOST = 1000  # classes that are shown; of more, those with the most wrong images
NUMBERED, NAMED = 20, 60  # up to so many classes cells have numbers, and rows names
CELL, SIDE = 46, 900  # pixels of a cell at most, and of the matrix where names or cells need it
LISTED, LIST_WIDTH = 40, 420  # lines of the list of confusions at most, and its pixels
_GAP, _LINE, _NAME = 16, 19, 150
_TEXT, _GREY = (0, 0, 0), (96, 96, 96)
_RIGHT, _WRONG = np.array([24, 122, 72]), np.array([196, 42, 30])  # colours of a whole row
_LEAST = 0.18  # of these, for a cell that is not empty
OTHER = "other"
HEADINGS = ("Most frequent confusions", "Highest errors")

Counts = Mapping[str, Mapping[str, int]]  # of images, by class and predicted class


def confusion_image(counts: Counts, class_names: Sequence[str], title: str) -> Image.Image:
    """Return the matrix of `counts` under `title`, and its most frequent confusions as a list.

    Rows are the classes that have images, in the order of `class_names`. Columns are the same
    classes, and one for all others if any of them was predicted. The colour of a cell is the square
    root of its share of the row, green on the diagonal and red elsewhere.
    """
    present = [name for name in class_names if sum(counts.get(name, {}).values())]
    shown = present
    if len(present) > MOST:
        worst = sorted(present, key=lambda name: -_wrong(counts, name))[:MOST]
        shown = [name for name in present if name in set(worst)]
        title += f"; here the {MOST:,} classes with the most wrong images"
    columns = {name: i for i, name in enumerate(shown)}
    matrix = np.zeros((len(shown), len(shown) + 1), int)
    for i, name in enumerate(shown):
        for predicted, number in counts[name].items():
            matrix[i, columns.get(predicted, -1)] += number
    names = [*shown, OTHER] if matrix[:, -1].any() else shown
    matrix = matrix[:, : len(names)]

    cell = min(CELL, max(2, SIDE // len(shown)))
    named = len(shown) <= NAMED
    left = _GAP + _NAME
    top = 2 * _GAP + 2 * _LINE + (_NAME if named else _LINE)
    height = top + max(len(shown) * cell, 8 * _LINE) + _GAP
    room = (height - top) // _LINE
    lines = _confusions(counts, min(LISTED, (room if named else room // 2) - 1))
    if not named:
        lines += _worst_classes(counts, min(LISTED, room - len(lines) - 2))
    width = left + len(names) * cell + 2 * _GAP + (LIST_WIDTH if lines else _NAME)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    draw.text((_GAP, _GAP), fitted(draw, title, font, width - 2 * _GAP), _TEXT, font)
    how = "Rows: class; columns: predicted class"
    draw.text((_GAP, _GAP + _LINE), how, _GREY, small)
    pixels = Image.fromarray(_colours(matrix))
    size = (len(names) * cell, len(shown) * cell)
    image.paste(pixels.resize(size, Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=_GREY)
    if named:
        _name_rows_and_columns(image, names, len(shown), cell, (left, top))
    else:
        _mark(draw, shown, cell, (left, top), small)
    if len(shown) <= NUMBERED:
        _number_cells(draw, matrix, cell, (left, top), small)
    x = left + size[0] + 2 * _GAP
    for i, line in enumerate(lines):
        text = fitted(draw, line, small, LIST_WIDTH - _GAP)
        draw.text((x, top + i * _LINE), text, _GREY if line in HEADINGS else _TEXT, small)
    return image


def _wrong(counts: Counts, name: str) -> int:
    return sum(number for predicted, number in counts[name].items() if predicted != name)


def _confusions(counts: Counts, most: int) -> list[str]:
    """Return a heading and a line for each of the most frequent confusions, at most `most`."""
    pairs = [
        (number, name, predicted)
        for name, row in counts.items()
        for predicted, number in row.items()
        if predicted != name
    ]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
    of = {name: sum(row.values()) for name, row in counts.items()}
    lines = [f"{name} as {predicted}: {n} of {of[name]}" for n, name, predicted in pairs[:most]]
    return [HEADINGS[0], *lines] if lines else []


def _worst_classes(counts: Counts, most: int) -> list[str]:
    """Return a heading and a line for each of the classes of the highest error, at most `most`."""
    errors = {name: _wrong(counts, name) / sum(row.values()) for name, row in counts.items()}
    worst = sorted(errors, key=lambda name: (-errors[name], name))[: max(0, most)]
    return ["", HEADINGS[1], *(f"{name}: {errors[name]:.0%}" for name in worst)] if worst else []


def _colours(matrix: np.ndarray) -> np.ndarray:
    """Return a colour for each cell, uint8 (rows, columns, 3)."""
    share = np.sqrt(matrix / matrix.sum(1, keepdims=True))
    strength = np.where(matrix > 0, _LEAST + (1 - _LEAST) * share, 0)[..., None]
    diagonal = np.eye(*matrix.shape, dtype=np.bool_)[..., None]
    full = np.where(diagonal, _RIGHT, _WRONG)
    return np.rint(255 + strength * (full - 255)).astype(np.uint8)


def _name_rows_and_columns(
    image: Image.Image, names: Sequence[str], rows: int, cell: int, corner: tuple[int, int]
) -> None:
    draw, (left, top) = ImageDraw.Draw(image), corner
    font = ImageFont.load_default(size=min(14, cell - 1))
    for i, name in enumerate(names):
        text = fitted(draw, name, font, _NAME - 8)
        length, middle = draw.textlength(text, font), (i + 0.5) * cell
        if i < rows:
            draw.text((left - 6 - length, top + middle), text, _TEXT, font, anchor="lm")
        upright = Image.new("RGB", (_NAME - 6, cell), "white")
        ImageDraw.Draw(upright).text((0, cell / 2), text, _TEXT, font, anchor="lm")
        turned = upright.transpose(Image.Transpose.ROTATE_90)
        image.paste(turned, (left + i * cell, top - _NAME))


def _mark(
    draw: ImageDraw.ImageDraw,
    names: Sequence[str],
    cell: int,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Name some rows, as many as fit, and number the columns of the same classes."""
    left, top = corner
    step = next(i for i in (10, 20, 50) if i * cell >= 2 * _LINE)
    for i in range(0, len(names), step):
        middle = (i + 0.5) * cell
        text = fitted(draw, f"{i + 1} {names[i]}", font, _NAME - 12)
        draw.text((left - 8, top + middle), text, _TEXT, font, anchor="rm")
        draw.line((left - 5, top + middle, left - 1, top + middle), _GREY)
        draw.line((left + middle, top - 5, left + middle, top - 1), _GREY)
        draw.text((left + middle, top - 7), str(i + 1), _TEXT, font, anchor="mb")


def _number_cells(
    draw: ImageDraw.ImageDraw,
    matrix: np.ndarray,
    cell: int,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    totals = matrix.sum(1)
    for (i, j), number in np.ndenumerate(matrix):
        if number:
            place = corner[0] + (j + 0.5) * cell, corner[1] + (i + 0.5) * cell
            dark = number / totals[i] > 0.3
            draw.text(place, str(number), "white" if dark else _TEXT, font, anchor="mm")
