"""A field with what was found in it drawn over: outlines, numbers, a legend.

What a person has to look at before trusting a number: whether each outline is that of
one nucleus. Colours differ for colour-blind readers too, and a letter goes with each.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Colour of outline and label, colour of the label's text, letter.
_Style = tuple[str, str, str]
STYLES: Mapping[str, _Style] = {
    "ALL": ("#c44e00", "#ffffff", "A"),
    "HEM": ("#0063a3", "#ffffff", "H"),
    "uncertain": ("#f0b400", "#1a1a1a", "?"),
    "nucleus": ("#007a59", "#ffffff", ""),
}

_LONGEST, _SHORTEST = 2400, 1000  # pixels of the longer side of the drawn field
_LEAST_CELL = 72  # pixels of a usual cell's width, where there is room
_LEAST_WIDTH = 820  # of the whole picture, for its words
_MARGIN, _LEADING = 16, 1.35
_TITLE, _TEXT = 24, 17  # sizes of the font
_LABEL = (11, 26)  # sizes of the font of numbers
_PAPER, _INK, _FAINT, _MARK = "#ffffff", "#1a1a1a", "#4d4d4d", "#b3261e"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """One cell to draw.

    Attributes:
      points: (n, 2) float, x and y in field pixels.
      number: of the cell.
      kind: a key of `STYLES`.
    """

    points: np.ndarray
    number: int
    kind: str


def draw(
    image: np.ndarray,
    outlines: Sequence[Outline],
    *,
    title: str,
    legend: Mapping[str, str],
    lines: Sequence[str],
    warning: str,
) -> bytes:
    """Returns a PNG file: title and legend, the field with outlines, words.

    Args:
      image: (height, width, 3) uint8 RGB.
      outlines: of its cells.
      title: above all.
      legend: kind → what it says of it; shown in this order.
      lines: below the field, wrapped.
      warning: the last line, which stands out.
    """
    field = _with_outlines(image, outlines)
    width = max(field.width + 2 * _MARGIN, _LEAST_WIDTH)
    words = [
        (text, colour)
        for line, colour in [*((line, _FAINT) for line in lines), (warning, _MARK)]
        for text in _wrapped(line, width - 2 * _MARGIN)
    ]
    head = 2 * _MARGIN + int(_TITLE * _LEADING) + int(_TEXT * 1.8)
    foot = 2 * _MARGIN + int(len(words) * _TEXT * _LEADING)
    sheet = Image.new("RGB", (width, head + field.height + foot), _PAPER)
    sheet.paste(field, ((width - field.width) // 2, head))
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (_MARGIN, _MARGIN), _fitting(title, width - 2 * _MARGIN), _INK, _font(_TITLE)
    )
    _draw_legend(pen, legend, _MARGIN + int(_TITLE * _LEADING) + 8)
    for i, (text, colour) in enumerate(words):
        y = head + field.height + _MARGIN + int(i * _TEXT * _LEADING)
        pen.text((_MARGIN, y), text, colour, _font(_TEXT))
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _with_outlines(image: np.ndarray, outlines: Sequence[Outline]) -> Image.Image:
    """Returns the field, as large as is looked at well, with outlines and numbers."""
    field = Image.fromarray(image)
    longer = max(field.size)
    widths = [float(np.ptp(outline.points, axis=0).min()) for outline in outlines]
    legible = _LEAST_CELL / max(1.0, float(np.median(widths))) if widths else 1.0
    zoom = min(_LONGEST / longer, max(1.0, _SHORTEST / longer, min(legible, 4.0)))
    if longer < _SHORTEST / 20:
        zoom = min(zoom, 8.0)  # a handful of pixels is no field
    if zoom != 1:
        size = tuple(max(1, round(length * zoom)) for length in field.size)
        field = field.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(field)
    thick = max(2, round(max(field.size) / 600))
    for outline in outlines:
        points = [(float(x), float(y)) for x, y in outline.points * zoom]
        pen.line(points, "#ffffff", thick + 2, joint="curve")
        pen.line(points, STYLES[outline.kind][0], thick, joint="curve")
    # Numbers last: no outline may run over one.
    for outline in outlines:
        _draw_label(pen, outline, zoom)
    return field


def _draw_label(pen: ImageDraw.ImageDraw, outline: Outline, zoom: float) -> None:
    colour, ink, letter = STYLES[outline.kind]
    low, high = outline.points.min(axis=0) * zoom, outline.points.max(axis=0) * zoom
    smallest, largest = _LABEL
    size = int(np.clip(0.22 * (high - low).min(), smallest, largest))
    text = f"{outline.number}{letter and ' ' + letter}"
    x, y = (float(value) for value in (low + high) / 2)
    left, top, right, bottom = pen.textbbox((x, y), text, _font(size), anchor="mm")
    pad = size // 4
    box = (left - pad, top - pad, right + pad, bottom + pad)
    pen.rounded_rectangle(box, size // 3, fill=colour)
    pen.text((x, y), text, ink, _font(size), anchor="mm")


def _draw_legend(pen: ImageDraw.ImageDraw, legend: Mapping[str, str], top: int) -> None:
    x = float(_MARGIN)
    for kind, words in legend.items():
        colour, ink, letter = STYLES[kind]
        side = _TEXT + 6
        pen.rounded_rectangle((x, top, x + side, top + side), 5, fill=colour)
        middle = (x + side / 2, top + side / 2)
        pen.text(middle, letter or "1", ink, _font(_TEXT - 2), anchor="mm")
        pen.text((x + side + 7, middle[1]), words, _INK, _font(_TEXT), anchor="lm")
        x += side + 7 + pen.textlength(words, _font(_TEXT)) + 26


def _wrapped(text: str, width: int) -> list[str]:
    """Returns the text in lines of at most `width` pixels, where words allow it."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _font(_TEXT).getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def _fitting(text: str, width: int) -> str:
    """Returns the title, its beginning left out where it is too wide."""
    if _font(_TITLE).getlength(text) <= width:
        return text
    while len(text) > 1 and _font(_TITLE).getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
