"""Pictures of probabilities: ROC, precision and recall, calibration, learning.

Every function takes what `evaluation.json` or `metrics.jsonl` holds and returns a
figure that is not yet signed; see `plots_style`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from allcls_jax.evaluation.plots_style import (
    BLUE,
    CLASSES,
    GREY,
    SERIES,
    VERMILLION,
    canvas,
    series,
    styled,
)

Curve = Mapping[str, Sequence[float]]


@styled
def roc(curves: Mapping[str, Curve]) -> Figure:
    """Returns sensitivity against the rate of false alarms, with bands.

    Args:
      curves: name → `fpr`, `tpr` and, where there is a band, `low` and `high`.
    """
    figure, (axes,) = canvas(_square(curves))
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.text(0.62, 0.55, "chance", color=GREY, fontsize=8, va="top")
    _bands(axes, curves, "fpr", "tpr")
    axes.set_xlabel("1 − specificity (HEM called ALL)")
    axes.set_ylabel("sensitivity (ALL found)")
    _unit_square(axes)
    return figure


@styled
def precision_recall(curves: Mapping[str, Curve], share: float | None = None) -> Figure:
    """Returns precision against recall, with bands.

    Args:
      curves: name → `recall`, `precision` and, where there is a band, `low`, `high`.
      share: of ALL among the images, in [0, 1]: the precision of guessing.
    """
    figure, (axes,) = canvas(_square(curves))
    if share is not None:
        axes.axhline(share, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(
            0.02, share - 0.02, f"chance {share:.2f}", color=GREY, fontsize=8, va="top"
        )
    _bands(axes, curves, "recall", "precision")
    axes.set_xlabel("recall (ALL found)")
    axes.set_ylabel("precision (of those called ALL)")
    _unit_square(axes)
    return figure


@styled
def reliability(bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Returns the observed share of ALL against the predicted probability.

    Args:
      bins: name, such as "as predicted" → bins with `mean_probability`, `share_all` and
        its `low` and `high`.
    """
    figure, (axes,) = canvas(_square(bins))
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.text(0.6, 0.53, "perfect", color=GREY, fontsize=8, va="top")
    for (name, points), (colour, marker, style) in zip(
        bins.items(), series(), strict=False
    ):
        points = [point for point in points if point.get("share_all") is not None]
        x = [point["mean_probability"] for point in points]
        y = [point["share_all"] for point in points]
        for point in points:
            if point.get("low") is not None and point.get("high") is not None:
                axes.plot(
                    [point["mean_probability"]] * 2,
                    [point["low"], point["high"]],
                    color=colour,
                    linewidth=1,
                    alpha=0.6,
                )
        axes.plot(x, y, color=colour, marker=marker, linestyle=style, label=name)
    axes.set_xlabel("predicted probability of ALL")
    axes.set_ylabel("share that is ALL")
    _unit_square(axes)
    _legend_above(axes, len(bins))
    return figure


@styled
def histogram(content: Mapping[str, Sequence[float]]) -> Figure:
    """Returns how the probabilities of both classes are spread, ALL up and HEM down.

    Args:
      content: `edges` (n + 1), and the counts `ALL` and `HEM` (n each).
    """
    figure, (axes,) = canvas(3.0)
    edges = np.asarray(content["edges"], dtype=float)
    widths = np.diff(edges)
    limit = 0.0
    for name, sign in (("ALL", 1), ("HEM", -1)):
        counts = np.asarray(content[name], dtype=float)
        share = counts / max(counts.sum(), 1)
        limit = max(limit, float(share.max(initial=0)))
        colour, _ = CLASSES[name]
        axes.bar(
            edges[:-1],
            sign * share,
            widths,
            align="edge",
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            hatch=None if name == "ALL" else "////",
            label=f"{name} ({int(counts.sum()):,})",
        )
    limit = max(limit, 0.01) * 1.1
    axes.set_ylim(-limit, limit)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * abs(value):.3g} %")
    )
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("predicted probability of ALL")
    axes.set_ylabel("share of the class")
    _legend_above(axes, 2)
    return figure


@styled
def abstention(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the error among the images answered, against how many are answered.

    Args:
      points: `coverage`, `error` and, where there is a band, `low` and `high`.
    """
    figure, (axes,) = canvas(3.0)
    points = [point for point in points if point.get("error") is not None]
    x = [point["coverage"] for point in points]
    banded = [point for point in points if point.get("low") is not None]
    axes.fill_between(
        [point["coverage"] for point in banded],
        [point["low"] for point in banded],
        [point["high"] for point in banded],
        color=BLUE,
        alpha=0.16,
        linewidth=0,
    )
    axes.plot(x, [point["error"] for point in points], color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.grid()
    axes.set_xlabel("images answered, the most confident first")
    axes.set_ylabel("wrong among those")
    return figure


@styled
def learning(
    histories: Sequence[Sequence[Mapping[str, int | float]]], quantity: str
) -> Figure:
    """Returns loss or accuracy by epoch, of training and validation.

    Args:
      histories: records of `metrics.jsonl`, one sequence a run; each with an epoch at
        least. Several runs are drawn as thin lines.
      quantity: "loss" or "accuracy".
    """
    figure, (axes,) = canvas(3.0)
    draw_learning(axes, histories, quantity)
    _legend_above(axes, 3)
    return figure


def draw_learning(
    axes: Axes,
    histories: Sequence[Sequence[Mapping[str, int | float]]],
    quantity: str,
) -> None:
    """Draws as `learning` into axes, without a legend."""
    alone = len(histories) == 1
    for number, history in enumerate(histories):
        epochs = [record["epoch"] for record in history]
        best = min(history, key=lambda record: record["validation_loss"])
        for use, (colour, marker, style) in zip(
            ("train", "validation"), SERIES, strict=False
        ):
            axes.plot(
                epochs,
                [record[f"{use}_{quantity}"] for record in history],
                color=colour,
                linestyle=style,
                marker=marker if alone else None,
                markersize=4,
                linewidth=1.6 if alone else 0.9,
                alpha=1 if alone else 0.7,
                label=use if number == 0 else None,
            )
        if alone:
            axes.axvline(
                best["epoch"],
                color=GREY,
                linewidth=1,
                linestyle=":",
                label="best, kept",
            )
        else:
            axes.plot(
                best["epoch"],
                best[f"validation_{quantity}"],
                color=VERMILLION,
                marker="s",
                markersize=4,
                linestyle="none",
                label="best, kept" if number == 0 else None,
            )
    last = max(record["epoch"] for history in histories for record in history)
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    if quantity == "accuracy":
        axes.set_ylim(None, 1.005)
        axes.set_ylabel("accuracy")
    else:
        axes.set_ylabel("mean cross-entropy (nats)")
    axes.grid(axis="y")


def _bands(axes: Axes, curves: Mapping[str, Curve], x: str, y: str) -> None:
    for (name, curve), (colour, _, style) in zip(
        curves.items(), series(), strict=False
    ):
        if curve.get("low") and curve.get("high"):
            axes.fill_between(
                _numbers(curve[x]),
                _numbers(curve["low"]),
                _numbers(curve["high"]),
                color=colour,
                alpha=0.16,
                linewidth=0,
            )
        axes.plot(
            _numbers(curve[x]),
            _numbers(curve[y]),
            color=colour,
            linestyle=style,
            label=name,
        )
    if len(curves) > 1:
        _legend_above(axes, 3)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Returns floats; matplotlib leaves a gap where one is undefined."""
    return np.array([np.nan if value is None else value for value in values], float)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.grid()


def _square(named: Mapping[str, Any]) -> float:
    """Returns the height, in inches, of a square plot with a legend for its names."""
    return 4.1 + (0.2 * -(-len(named) // 3) if len(named) > 1 else 0)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=2.4,
        columnspacing=1.4,
    )
