"""Pictures with their captions as one PNG: pairs side by side, or a grid."""

import dataclasses
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from allcls_jax import DISCLAIMER

_PICTURE = 190  # pixels, side of one
_GAP = 14
_LINE = 19  # height of a line of text
_TEXT, _TITLE = 15, 24  # sizes of the font
_COLUMNS = 4
_LABEL, _LETTERS, _HEADING = 236, 28, 19  # of a grid's rows: width, in letters, font
_PAPER, _INK, _FAINT, _MARK = "#ffffff", "#1a1a1a", "#5c5c5c", "#b3261e"
_PALE = "#9a9a9a"
_CARD = "#f1f1f1"

# Stained cells are dark: shown so that this percentile of a pair is nearly white.
_PERCENTILE, _WHITE = 99.5, 235


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Card:
    """One pair."""

    pictures: tuple[np.ndarray, np.ndarray]  # (height, width, 3) uint8 each, on black
    captions: tuple[str, str]  # one line below each picture
    lines: tuple[str, ...]  # below both
    marked: bool  # whether the first of the lines stands out


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GridRow:
    """One row of a grid."""

    title: str
    text: str  # below the title, wrapped
    faint: bool  # whether the title recedes
    pictures: Sequence[np.ndarray]  # (size, size, 3) uint8 each


def draw(title: str, notes: Sequence[str], cards: Sequence[Card]) -> bytes:
    """Returns a PNG file of the cards, row by row, below a title and notes.

    The two pictures of a card are shown at the same scale, and brightened alike.
    """
    depth = max((len(card.lines) for card in cards), default=0)
    width = 2 * _PICTURE + 3 * _GAP
    height = _PICTURE + 2 * _GAP + _LINE * (1 + depth)
    columns = min(_COLUMNS, max(2, len(cards)))
    rows = -(-len(cards) // columns)
    head = 2 * _GAP + _TITLE + _LINE * (len(notes) + 2)
    size = columns * (width + _GAP) + _GAP, head + rows * (height + _GAP) + _GAP
    sheet, pen = _begin(title, notes, size)
    for i, card in enumerate(cards):
        left = _GAP + (i % columns) * (width + _GAP)
        top = head + (i // columns) * (height + _GAP)
        pen.rectangle((left, top, left + width, top + height), fill=_CARD)
        _draw_card(sheet, pen, card, left + _GAP, top + _GAP)
    return _as_png(sheet)


def draw_grid(
    title: str, notes: Sequence[str], captions: Sequence[str], rows: Sequence[GridRow]
) -> bytes:
    """Returns a PNG file of rows of pictures, all cut and brightened alike.

    Of all sides as much is cut off as is black in every picture.

    Args:
      title: of the sheet.
      notes: lines below it.
      captions: one line above each column.
      rows: at least one, with a picture for each caption; all pictures of one size.
    """
    head = 2 * _GAP + _TITLE + _LINE * (len(notes) + 3)
    step = _PICTURE + _GAP
    size = _LABEL + len(captions) * step + 2 * _GAP, head + len(rows) * step + _GAP
    sheet, pen = _begin(title, notes, size)
    pictures = [picture for row in rows for picture in row.pictures]
    bright, inner = _brightness(pictures), _inner(pictures)
    for i, caption in enumerate(captions):
        at = _LABEL + _GAP + i * step, head - _LINE - 4
        pen.text(at, _shortened(pen, caption, _PICTURE), _FAINT, _font(_TEXT))
    for i, row in enumerate(rows):
        top = head + i * step
        ink = _PALE if row.faint else _INK
        pen.text((_GAP, top), row.title, ink, _font(_HEADING))
        text = textwrap.fill(row.text, _LETTERS)
        below = (_GAP, top + _HEADING + 8)
        pen.multiline_text(below, text, _FAINT, _font(_TEXT), spacing=4)
        for j, picture in enumerate(row.pictures):
            left = _LABEL + _GAP + j * step
            _paste(sheet, picture[inner, inner], bright, left, top)
    return _as_png(sheet)


def _begin(
    title: str, notes: Sequence[str], size: tuple[int, int]
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns a sheet with its title, notes and disclaimer, and a pen for more."""
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, _INK, _font(_TITLE))
    for i, note in enumerate((*notes, DISCLAIMER)):
        colour = _MARK if note == DISCLAIMER else _FAINT
        pen.text((_GAP, 2 * _GAP + _TITLE + i * _LINE), note, colour, _font(_TEXT))
    return sheet, pen


def _as_png(sheet: Image.Image) -> bytes:
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int
) -> None:
    pictures = [_tight(picture) for picture in card.pictures]
    largest = max(max(picture.shape[:2]) for picture in pictures)
    bright = _brightness(pictures)
    for i, picture in enumerate(pictures):
        x = left + i * (_PICTURE + _GAP)
        pen.rectangle((x, top, x + _PICTURE - 1, top + _PICTURE - 1), fill="black")
        _paste(sheet, picture, bright, x, top, largest)
        caption = _shortened(pen, card.captions[i], _PICTURE)
        pen.text((x, top + _PICTURE + 3), caption, _INK, _font(_TEXT))
    for i, line in enumerate(card.lines):
        colour = _MARK if card.marked and i == 0 else _FAINT
        y = top + _PICTURE + 3 + (1 + i) * _LINE
        text = _shortened(pen, line, 2 * _PICTURE + _GAP)
        pen.text((left, y), text, colour, _font(_TEXT))


def _brightness(pictures: Sequence[np.ndarray]) -> float:
    """Returns the grey level that is to be shown nearly white, at least 1."""
    levels = (np.percentile(picture.max(axis=-1), _PERCENTILE) for picture in pictures)
    return max(1.0, *map(float, levels))


def _paste(
    sheet: Image.Image,
    picture: np.ndarray,
    bright: float,
    left: int,
    top: int,
    largest: int | None = None,
) -> None:
    """Puts a picture into the middle of a square of `_PICTURE` pixels.

    Args:
      sheet: is changed.
      picture: (height, width, 3) uint8.
      bright: the grey level to be shown nearly white.
      left: of the square.
      top: of the square.
      largest: pixels of a picture that fill the square; None: the picture's own.
    """
    lit = np.clip(picture * (_WHITE / bright), 0, 255).astype(np.uint8)
    whole = largest or max(lit.shape[:2])
    high, wide = (max(1, round(side * _PICTURE / whole)) for side in lit.shape[:2])
    small = Image.fromarray(lit).resize((wide, high), Image.Resampling.BICUBIC)
    sheet.paste(small, (left + (_PICTURE - wide) // 2, top + (_PICTURE - high) // 2))


def _inner(pictures: Sequence[np.ndarray]) -> slice:
    """Returns the rows, and columns, of the centred square outside of which is nothing.

    Args:
      pictures: (size, size, 3) uint8 each.
    """
    lit = np.max([picture.max(axis=-1) for picture in pictures], axis=0) > 0
    places = np.concatenate(np.nonzero(lit | lit[::-1, ::-1]))
    return slice(int(places.min()), int(places.max()) + 1) if len(places) else slice(1)


def _tight(picture: np.ndarray) -> np.ndarray:
    """Returns what is not black, or all where everything is."""
    mask = np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2]) > 0
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _shortened(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Returns the text, its beginning left out where it is too wide."""
    if pen.textlength(text, _font(_TEXT)) <= width:
        return text
    while len(text) > 1 and pen.textlength(f"…{text}", _font(_TEXT)) > width:
        text = text[1:]
    return f"…{text}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
