"""How every picture of this package looks, and how it becomes SVG or PNG.

A picture always carries the note of its run and the disclaimer. The same input gives
the same bytes: no time, no random names. Nothing here is read from the user's own
matplotlib settings that would change a picture.
"""

import functools
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from allcls_jax import DISCLAIMER

# The palette of Okabe and Ito, told apart by colour-blind readers too. A colour never
# stands alone: a marker or a style of line goes with it.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, AMBER, SKY = "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, RULE = "#1b1b1b", "#595959", "#c9c9c9"

LineStyle = str | tuple[float, tuple[float, ...]]

# (colour, marker, style of line) of the first, second, … of several series.
SERIES: tuple[tuple[str, str, LineStyle], ...] = (
    (BLUE, "o", "-"),
    (VERMILLION, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    (AMBER, "v", (0, (6, 1.5, 1, 1.5))),
    (SKY, "P", (0, (3, 1))),
    (GREY, "X", (0, (1, 1))),
)
CLASSES = {"ALL": (VERMILLION, "o"), "HEM": (BLUE, "s")}

WIDTH = 4.6  # inches of a picture that fills a phone's width and half a page

_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    # A patient may be called $a$.
    "text.parse_math": False,
    "svg.fonttype": "none",
}

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Returns a function that draws in the style of this package."""

    @functools.wraps(draw)
    def inner(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            return draw(*args, **kwargs)

    return inner


def canvas(
    height: float = 3.4, *, width: float = WIDTH, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure and its axes from left to right; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def series() -> Iterator[tuple[str, str, LineStyle]]:
    """Yields colour, marker and style of line, beginning again when all are used."""
    return itertools.cycle(SERIES)


def to_svg(figure: Figure, *, name: str, title: str, note: str = "") -> str:
    """Returns an `<svg>` element that can stand in a page beside others.

    Args:
      figure: is drawn once; not to be used again.
      name: of letters, digits and hyphens, unique in the page: every id begins with it.
      title: what a reader who cannot see it is told.
      note: what must be known of the run.
    """
    text = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        mpl.rcParams["svg.hashsalt"] = name
        _sign(figure, note)
        # Without these matplotlib writes the time and its own address.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib writes one"
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    return f'<svg class="plot" {box[0]} role="img" aria-label={quoteattr(title)}>{body}'


def to_png(figure: Figure, note: str) -> bytes:
    """Returns the picture as a PNG of 150 dots an inch."""
    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        _sign(figure, note)
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _sign(figure: Figure, note: str) -> None:
    """Writes note and disclaimer at the foot, below the size that was asked for."""
    columns = int(figure.get_figwidth() * 14)
    lines = [*textwrap.wrap(note, columns), DISCLAIMER]
    figure.set_figheight(figure.get_figheight() + 0.14 * len(lines))
    figure.supxlabel("\n".join(lines), fontsize=7.5, color=GREY, ma="center")
