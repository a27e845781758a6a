"""Pictures in pairs, side by side with their captions, as one PNG."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from allcls_jax import DISCLAIMER

_PICTURE = 190  # pixels, side of one
_GAP = 14
_LINE = 19  # height of a line of text
_TEXT, _TITLE = 15, 24  # sizes of the font
_COLUMNS = 4
_PAPER, _INK, _FAINT, _MARK = "#ffffff", "#1a1a1a", "#5c5c5c", "#b3261e"
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
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP) + _GAP, head + rows * (height + _GAP) + _GAP),
        _PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, _INK, _font(_TITLE))
    for i, note in enumerate((*notes, DISCLAIMER)):
        colour = _MARK if note == DISCLAIMER else _FAINT
        pen.text((_GAP, 2 * _GAP + _TITLE + i * _LINE), note, colour, _font(_TEXT))
    for i, card in enumerate(cards):
        left = _GAP + (i % columns) * (width + _GAP)
        top = head + (i // columns) * (height + _GAP)
        pen.rectangle((left, top, left + width, top + height), fill=_CARD)
        _draw_card(sheet, pen, card, left + _GAP, top + _GAP)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int
) -> None:
    pictures = [_tight(picture) for picture in card.pictures]
    largest = max(max(picture.shape[:2]) for picture in pictures)
    bright = max(
        float(np.percentile(picture.max(axis=-1), _PERCENTILE)) for picture in pictures
    )
    for i, picture in enumerate(pictures):
        x = left + i * (_PICTURE + _GAP)
        lit = np.clip(picture * (_WHITE / max(bright, 1.0)), 0, 255).astype(np.uint8)
        high, wide = (
            max(1, round(side * _PICTURE / largest)) for side in lit.shape[:2]
        )
        small = Image.fromarray(lit).resize((wide, high), Image.Resampling.BICUBIC)
        pen.rectangle((x, top, x + _PICTURE - 1, top + _PICTURE - 1), fill="black")
        sheet.paste(small, (x + (_PICTURE - wide) // 2, top + (_PICTURE - high) // 2))
        caption = _shortened(pen, card.captions[i], _PICTURE)
        pen.text((x, top + _PICTURE + 3), caption, _INK, _font(_TEXT))
    for i, line in enumerate(card.lines):
        colour = _MARK if card.marked and i == 0 else _FAINT
        y = top + _PICTURE + 3 + (1 + i) * _LINE
        text = _shortened(pen, line, 2 * _PICTURE + _GAP)
        pen.text((left, y), text, colour, _font(_TEXT))


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
