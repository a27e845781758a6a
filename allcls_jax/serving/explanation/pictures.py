"""Maps laid over cells, as PNG: one picture each, a grid of many, and one for the page.

Warm colours speak for the class explained, blue ones against it; the stronger, the less
of the cell's grey shows through. Every map is scaled to its own largest value, so that
colours of two pictures do not compare.
"""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from allcls_jax.data import transforms
from allcls_jax.evaluation.plots_style import (
    GREY,
    INK,
    VERMILLION,
    canvas,
    styled,
    to_png,
)
from allcls_jax.serving.explanation.attribution import attribute, log_odds_of
from allcls_jax.serving.explanation.settings import Method, Settings
from allcls_jax.serving.model import Model

MOST_IN_GRID = 36

# From weak to strong; told apart by colour-blind readers, and unlike stained cells.
_WARM = ("#7a2a00", "#d55e00", "#f5a300", "#fff3a0")
_COLD = ("#00324f", "#0072b2", "#56b4e9", "#d8f1ff")

# Of the colour over the cell where the map is largest.
_OPACITY = 0.85

# Of a map's absolute values on the picture, what counts as its largest: a single pixel
# must not make all others invisible.
_PERCENTILE = 99.5

# Stained cells are dark: shown so that their brightest parts are about white.
_BRIGHT_PERCENTILE, _WHITE = 99.5, 235.0

_NAMES = {
    Method.GRADCAM: "Grad-CAM",
    Method.GRADCAM_PLUS: "Grad-CAM++",
    Method.INTEGRATED_GRADIENTS: "integrated gradients",
    Method.OCCLUSION: "occlusion",
}
_UNITS = {
    Method.GRADCAM: "relative weight",
    Method.GRADCAM_PLUS: "relative weight",
    Method.INTEGRATED_GRADIENTS: "log odds of {} per pixel",
    Method.OCCLUSION: "log odds of {} lost when hidden",
}
_COLOURS = 128


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explained:
    """One image with its map.

    Attributes:
      name: of the image.
      image: (s, s, 3) uint8 RGB, the background 0.
      values: (s, s) float32, positive for the class explained.
      target: `ALL` or `HEM`, the class explained.
      verdict: such as `P(ALL) 0.93, called ALL (above 0.50)`.
      short: the same in a few letters, such as `0.93 ALL`.
      lines: what else must be known.
    """

    name: str
    image: np.ndarray
    values: np.ndarray
    target: str
    verdict: str
    short: str
    lines: tuple[str, ...]


def heat_map_png(
    model: Model,
    image: np.ndarray,
    method: str = Method.GRADCAM,
    block: int | None = None,
    *,
    target: str | None = None,
    threshold: float = 0.5,
) -> bytes:
    """Returns a cell with its map, as PNG.

    Compiled at the first call for each network, method and block; safe in threads.

    Args:
      model: an opened one.
      image: (s, s, 3) uint8, of `Model.read`.
      method: of `attribution.Method`; the last two take long on a CPU.
      block: 1 to 5, for Grad-CAM and Grad-CAM++; None: the network's last.
      target: `ALL` or `HEM`, the class explained; None: the one that the cell is
        called, which takes a look at it more.
      threshold: on the calibrated P(ALL), above which the cell is called ALL.

    Returns:
      An opaque PNG of s x s pixels; where the map is 0 the cell is grey.

    Raises:
      InputError: if the network has no such block.
      ValueError: if there is no such method.
    """
    settings = Settings(method=Method(method), block=block)
    if target is None:
        # Not by the model's own function, which would fill up a whole batch.
        log_odds = float(log_odds_of(model.classifier, image[None])[0])
        target = "ALL" if log_odds > math.log(threshold / (1 - threshold)) else "HEM"
    sign = np.array([1.0 if target == "ALL" else -1.0])
    maps = attribute(model.classifier, image[None], sign, settings, batch_size=1)
    return transforms.encode_png(blend(image, maps.values[0]))


def blend(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns a cell in grey with its map in colours.

    Args:
      image: (s, s, 3) uint8 RGB.
      values: (s, s), of which the sign tells the colour.

    Returns:
      (s, s, 3) uint8 RGB.
    """
    grey = _brightened(image).mean(-1, keepdims=True)
    share = values / largest(values)
    strength = np.minimum(np.abs(share), 1)
    place = np.rint(strength * (_COLOURS - 1)).astype(int)
    colours = np.where(share[..., None] > 0, _ramp(_WARM)[place], _ramp(_COLD)[place])
    opacity = _OPACITY * np.sqrt(strength)[..., None]
    mixed = (1 - opacity) * grey + opacity * 255 * colours
    return np.rint(mixed).astype(np.uint8)


def largest(values: np.ndarray) -> float:
    """Returns the absolute value that gets the strongest colour, above 0."""
    size = np.abs(values)
    size = size[size > 0]
    return float(np.percentile(size, _PERCENTILE)) if size.size else 1.0


def overlay(
    explained: Explained, settings: Settings, *, note: str, warning: str = ""
) -> bytes:
    """Returns a PNG: the cell, the cell with its map and a colour bar, and the words.

    Args:
      explained: what to show.
      settings: how the map was made.
      note: what must be known of the model.
      warning: stands out above the map.
    """
    return to_png(_overlay(explained, settings, warning), note)


def grid(
    cells: Sequence[Explained], settings: Settings, *, note: str, warning: str = ""
) -> bytes:
    """Returns a PNG of up to `MOST_IN_GRID` cells with their maps.

    Args:
      cells: at least one; those beyond the most are left out.
      settings: how the maps were made.
      note: what must be known of the model and of what is left out.
      warning: stands out above the maps.
    """
    return to_png(_grid(cells[:MOST_IN_GRID], settings, warning), note)


def named(settings: Settings) -> str:
    """Returns the method in words, such as `Grad-CAM, block 5`."""
    name = _NAMES[settings.method]
    if settings.method in (Method.GRADCAM, Method.GRADCAM_PLUS):
        return f"{name}, block {settings.block}"
    if settings.method == Method.INTEGRATED_GRADIENTS:
        return f"{name}, {settings.steps} steps from black"
    return f"{name} by black squares"


@styled
def _overlay(explained: Explained, settings: Settings, warning: str) -> Figure:
    head = [
        *textwrap.wrap(explained.name, 84, break_on_hyphens=False),
        explained.verdict,
        f"What speaks for {explained.target}: {named(settings)}",
        *(part for line in explained.lines for part in textwrap.wrap(line, 96)),
    ]
    figure, axes = canvas(2.75 + 0.155 * len(head), width=6.2, columns=2)
    figure.suptitle(
        "\n".join(head), x=0.01, ha="left", fontsize=8.5, linespacing=1.25, color=INK
    )
    _show(axes[0], np.rint(_brightened(explained.image)).astype(np.uint8))
    _show(axes[1], blend(explained.image, explained.values))
    _caption(axes[0], "the cell, as the network sees it, brightened")
    _caption(axes[1], f"warm: for {explained.target}")
    if settings.method.signed:
        _caption(axes[1], f"warm: for {explained.target}; blue: against it")
    if warning:
        axes[1].set_title(warning, color=VERMILLION, fontsize=8.5, weight="bold")
    top = largest(explained.values)
    low = -top if settings.method.signed else 0.0
    colours = _ramp(_WARM)
    if settings.method.signed:
        colours = np.concatenate([_ramp(_COLD)[::-1], colours])
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, top), ListedColormap(colours)),
        ax=axes,
        shrink=0.8,
        aspect=18,
        pad=0.02,
    )
    bar.set_label(_UNITS[settings.method].format(explained.target), fontsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=7.5)
    if not np.any(explained.values):
        bar.set_ticks([])
    return figure


@styled
def _grid(cells: Sequence[Explained], settings: Settings, warning: str) -> Figure:
    columns = max(3, math.ceil(math.sqrt(len(cells))))
    rows = math.ceil(len(cells) / columns)
    side = 8.4 / max(columns, 4)
    figure = Figure(
        figsize=(columns * side, rows * (side + 0.36) + 0.35),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    name = named(settings)
    head = f"{name[:1].upper()}{name[1:]}; warm: for the class explained"
    figure.suptitle(
        head + ("; blue: against it" if settings.method.signed else ""),
        x=0.01,
        ha="left",
        fontsize=9,
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    if warning:
        axes[0].set_title(warning, color=VERMILLION, fontsize=9, weight="bold")
    letters = int(side * 13)
    for ax, cell in zip(axes, cells, strict=False):
        _show(ax, blend(cell.image, cell.values))
        name = cell.name.replace("\\", "/").rpartition("/")[2]
        shown = name if len(name) <= letters else f"…{name[1 - letters :]}"
        same = "" if np.any(cell.values) else "; no map"
        _caption(ax, f"{shown}\n{cell.short}{same}")
    for ax in axes[len(cells) :]:
        ax.set_axis_off()
    return figure


def _show(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture, interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _caption(ax: Axes, text: str) -> None:
    ax.set_xlabel(text, fontsize=7.5, color=GREY, loc="left", labelpad=3)


def _brightened(image: np.ndarray) -> np.ndarray:
    """Returns the picture as floats, scaled up so that the cell is well seen."""
    level = image.max(-1)
    on_cell = level[level > 0]
    bright = np.percentile(on_cell, _BRIGHT_PERCENTILE) if on_cell.size else _WHITE
    return np.minimum(image * (_WHITE / max(float(bright), 1.0)), 255)


def _ramp(colours: Sequence[str]) -> np.ndarray:
    """Returns `_COLOURS` colours between some (k, 3), in [0, 1]."""
    stops = np.array(
        [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours]
    )
    at = np.linspace(0, 1, _COLOURS)
    known = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, known, stops[:, i]) for i in range(3)], axis=-1)
