"""Pictures with a row for each thing: a figure, a patient, a fold, a baseline, a run.

Rows run from top to bottom, so that a picture grows in height only and stays readable
on a phone. As in `plots_curves`, figures are returned unsigned.
"""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from allcls_jax.evaluation.plots_style import (
    CLASSES,
    GREY,
    RULE,
    canvas,
    series,
    styled,
)

# More rows than this have no label each; they would overlap in print.
_MOST_LABELS = 130


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A figure and its interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    # A second, usually narrower interval, drawn as a thin line with ends.
    inner_low: float | None = None
    inner_high: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A value of reference, drawn from top to bottom."""

    value: float
    label: str


def point(figure: Mapping[str, Any] | None, *, both: bool = False) -> Point:
    """Returns the point of an entry of `evaluation.json`, with its interval.

    Args:
      figure: None where there is none.
      both: whether the interval over images is shown inside that over groups.
    """
    if figure is None or figure.get("value") is None:
        return Point(None)
    return Point(
        figure["value"],
        figure.get("low"),
        figure.get("high"),
        figure.get("image_low") if both else None,
        figure.get("image_high") if both else None,
    )


@styled
def forest(
    rows: Sequence[str],
    points: Mapping[str, Sequence[Point]],
    *,
    label: str,
    line: Line | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Returns points with their intervals, a row each.

    Args:
      rows: names, from the top.
      points: name of the series → a point for each row.
      label: of the axis.
      line: of reference.
      limits: of the axis; None fits it to the intervals.
    """
    several = len(points) > 1
    lines = max(len(textwrap.wrap(row, 24)) for row in rows)
    each = max(0.26 + 0.12 * (len(points) - 1), 0.15 * lines + 0.12)
    height = each * len(rows) + 1.0 + (0.25 if several or line else 0)
    figure, (axes,) = canvas(max(height, 1.9))
    position = np.arange(len(rows))
    step = 0.62 / len(points) if several else 0
    for number, ((name, values), (colour, marker, _)) in enumerate(
        zip(points.items(), series(), strict=False)
    ):
        shift = (number - (len(points) - 1) / 2) * step
        for row, point in zip(position, values, strict=True):
            _draw(axes, point, row + shift, colour, marker)
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label=name)
    _name_rows(axes, [textwrap.fill(row, 24) for row in rows])
    for row in position[:-1]:
        axes.axhline(row + 0.5, color=RULE, linewidth=0.4)
    if line is not None:
        axes.axvline(
            line.value,
            color=GREY,
            linewidth=1.2,
            linestyle=(0, (4, 2)),
            label=line.label,
        )
    if limits is not None:
        axes.set_xlim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label)
    axes.grid(axis="x")
    if several or line is not None:
        _legend(figure, len(points) + (line is not None))
    return figure


@styled
def patients(rows: Sequence[Mapping[str, Any]], label: str) -> Figure:
    """Returns the mean probability of each patient of one class.

    Args:
      rows: of `evaluation.json`'s `patients`: `patient`, `images`, `mean_probability`.
      label: "ALL" or "HEM", of all of them.
    """
    # Tall enough for a name each, up to what fits a printed page.
    height = min(0.15 * len(rows) + 1.35, 0.08 * _MOST_LABELS + 1.35)
    figure, (axes,) = canvas(max(height, 2.0))
    colour, marker = CLASSES[label]
    order = sorted(rows, key=lambda row: -row["mean_probability"])
    position = np.arange(len(order))
    mean = np.array([row["mean_probability"] for row in order])
    images = np.array([row["images"] for row in order], dtype=float)
    right = (mean > 0.5) == (label == "ALL")
    axes.hlines(position, 0.5, mean, color=colour, linewidth=0.8, alpha=0.45)
    sizes = 8 + 72 * images / images.max()
    for chosen, face in ((right, colour), (~right, "white")):
        axes.scatter(
            mean[chosen],
            position[chosen],
            s=sizes[chosen],
            marker=marker,
            facecolor=face,
            edgecolor=colour,
            linewidth=1.2,
            zorder=3,
        )
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(-0.03, 1.03)
    if len(order) <= _MOST_LABELS:
        _name_rows(axes, [_short(str(row["patient"])) for row in order])
        axes.tick_params(axis="y", labelsize=7.5 if len(order) > 12 else 8.5)
    else:
        axes.set_yticks([])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_ylabel(f"{len(order)} patients")
    axes.set_xlabel("mean probability of ALL")
    axes.grid(axis="x")
    for face, text in ((colour, "right side of 0.5"), ("white", "wrong side")):
        axes.scatter(
            [], [], s=30, marker=marker, facecolor=face, edgecolor=colour, label=text
        )
    _legend(figure, 2)
    return figure


@styled
def spread(
    rows: Sequence[str], values: Mapping[str, Sequence[Sequence[float]]]
) -> Figure:
    """Returns figures of each fold: a point a seed, a bar at their mean.

    Args:
      rows: names of the folds.
      values: name of the figure → for each fold its values over the seeds.
    """
    each = 0.3 + 0.12 * (len(values) - 1)
    figure, (axes,) = canvas(max(each * len(rows) + 1.25, 1.9))
    step = 0.62 / len(values)
    for number, ((name, folds), (colour, marker, _)) in enumerate(
        zip(values.items(), series(), strict=False)
    ):
        shift = (number - (len(values) - 1) / 2) * step
        for row, found in enumerate(folds):
            if len(found) > 1:
                mean = float(np.mean(found))
                ends = (row + shift - 0.14, row + shift + 0.14)
                axes.plot((mean, mean), ends, color=colour, linewidth=2)
            axes.plot(
                found,
                [row + shift] * len(found),
                color=colour,
                marker=marker,
                markersize=4.5,
                markerfacecolor="none" if len(found) > 1 else colour,
                linestyle="none",
            )
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label=name)
    _name_rows(axes, rows)
    for row in range(len(rows) - 1):
        axes.axhline(row + 0.5, color=RULE, linewidth=0.4)
    axes.set_xlabel("figure on the fold's test images")
    axes.grid(axis="x")
    _legend(figure, len(values))
    return figure


@styled
def matrix(
    counts: Sequence[Sequence[int]], title: str, *, width: float = 3.4
) -> Figure:
    """Returns a confusion matrix in the paper's order.

    Args:
      counts: [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]].
      title: of which images.
      width: in inches.
    """
    figure, (axes,) = canvas(width * 0.98, width=width)
    table = np.asarray(counts)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            axes.text(
                column,
                row,
                f"{table[row, column]:,}\n{100 * share[row, column]:.1f} %",
                ha="center",
                va="center",
                fontsize=11 * width / 3.4,
                color="white" if share[row, column] > 0.55 else "black",
            )
    axes.set_xticks((0, 1), ("ALL", "HEM"))
    axes.set_yticks((0, 1), ("ALL", "HEM"))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("called")
    axes.set_ylabel("actual")
    axes.set_title(title, loc="left")
    return figure


def _draw(axes: Axes, point: Point, row: float, colour: str, marker: str) -> None:
    if point.value is None:
        return
    if point.low is not None and point.high is not None:
        axes.plot((point.low, point.high), (row, row), color=colour, linewidth=1.6)
    if point.inner_low is not None and point.inner_high is not None:
        ends = (point.inner_low, point.inner_high)
        axes.plot(ends, (row, row), color=colour, linestyle="none", marker="|", ms=9)
    axes.plot(point.value, row, color=colour, marker=marker, linestyle="none", zorder=3)


def _name_rows(axes: Axes, rows: Sequence[str]) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _legend(figure: Figure, entries: int) -> None:
    figure.legend(
        loc="outside upper left",
        ncols=2 if entries > 3 else 3,
        columnspacing=1.2,
        handletextpad=0.4,
    )


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
