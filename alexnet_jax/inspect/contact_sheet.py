"""A contact sheet: images in rows, each with its most probable class and the name of its file."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 6
SIDE = 160  # of an image, in pixels; smaller ones are enlarged with visible pixels
_GAP = 14
_LINE = 19
_TEXT, _GREY = (0, 0, 0), (96, 96, 96)


class Entry(NamedTuple):
    """An image of the sheet."""

    thumbnail: np.ndarray  # uint8 (SIDE, SIDE, 3)
    file_name: str
    class_name: str
    probability: float


def thumbnail(square: np.ndarray) -> np.ndarray:
    """Return an image uint8 (size, size, 3) as it is shown, uint8 (SIDE, SIDE, 3)."""
    how = Image.Resampling.NEAREST if len(square) < SIDE else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), how))


def contact_sheet(entries: Sequence[Entry], title: str, subtitle: str) -> Image.Image:
    """Return the sheet of `entries`, COLUMNS per row, under two lines of text."""
    columns = min(COLUMNS, max(3, len(entries)))
    rows = -(-len(entries) // columns)
    width = _GAP + columns * (SIDE + _GAP)
    height = 2 * _GAP + 2 * _LINE + rows * (SIDE + 2 * _LINE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    small = ImageFont.load_default(size=13)
    inside = width - 2 * _GAP
    draw.text((_GAP, _GAP), fitted(draw, title, font, inside), _TEXT, font)
    draw.text((_GAP, _GAP + _LINE), fitted(draw, subtitle, small, inside), _GREY, small)
    for i, entry in enumerate(entries):
        row, column = divmod(i, columns)
        x = _GAP + column * (SIDE + _GAP)
        y = 2 * _GAP + 2 * _LINE + row * (SIDE + 2 * _LINE + _GAP)
        sheet.paste(Image.fromarray(entry.thumbnail), (x, y))
        percent = f"{entry.probability:.1%}"
        right = draw.textlength(percent, font)
        y += SIDE + 2
        draw.text((x + SIDE - right, y), percent, _TEXT, font)
        draw.text((x, y), fitted(draw, entry.class_name, font, SIDE - right - 6), _TEXT, font)
        draw.text((x, y + _LINE - 1), fitted(draw, entry.file_name, small, SIDE), _GREY, small)
    return sheet


def fitted(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: float,
) -> str:
    """Return `text` in ASCII; if it is longer than `width` pixels, without its middle."""
    text = drawable(text)
    head, tail = text, ""
    while head and draw.textlength(shown := _joined(head, tail, text), font) > width:
        keep = len(shown) - 2  # characters, one less than now
        tail = text[len(text) - keep // 2 :] if keep > 1 else ""
        head = text[: keep - len(tail)]
    return _joined(head, tail, text)


def _joined(head: str, tail: str, text: str) -> str:
    return text if head == text else f"{head}…{tail}"


def drawable(text: str) -> str:
    """Return `text` in ASCII, as Pillow's own font needs: without accents, or with '?'."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)
