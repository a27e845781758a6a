"""Every figure that matplotlib draws; the only module of this stage that imports it.

Each plot carries the note of its run (synthetic cells, random weights, leaky split).
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DISCLAIMER = "Research use only. Not a medical device."

# Of Okabe and Ito, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"


def curves(history: Sequence[dict[str, int | float]], note: str) -> bytes:
    """Returns a PNG of loss and accuracy by epoch, of training and validation.

    Args:
      history: records of `metrics.jsonl`, at least one.
      note: what a reader must know of the run.
    """
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    best = min(history, key=lambda record: record["validation_loss"])
    for axes, name in ((left, "loss"), (right, "accuracy")):
        for use, colour, style in (
            ("train", _BLUE, "o-"),
            ("validation", _ORANGE, "s--"),
        ):
            values = [record[f"{use}_{name}"] for record in history]
            axes.plot(epochs, values, style, color=colour, label=use, markersize=4)
        axes.axvline(
            best["epoch"], color=_GREY, linewidth=1, linestyle=":", label="best, kept"
        )
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.set_ylabel("mean cross-entropy (nats)")
    left.legend(frameon=False)
    right.set_ylabel("accuracy")
    right.set_ylim(0, 1.02)
    return _png(figure, note)


def confusion_matrix(matrix: Sequence[Sequence[int]], title: str, note: str) -> bytes:
    """Returns a PNG of a confusion matrix in the paper's order.

    Args:
      matrix: [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]], counts.
      title: of which images.
      note: what a reader must know of the run.
    """
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}\n{share[row, column]:.1%}",
                ha="center",
                va="center",
                fontsize=14,
                color="white" if share[row, column] > 0.55 else "black",
            )
    names = ("ALL", "HEM")
    axes.set_xticks((0, 1), names)
    axes.set_yticks((0, 1), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(title, fontsize=11)
    return _png(figure, note)


def save(path: Path, png: bytes) -> None:
    """Writes a picture beside its place and renames it."""
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(png)
    beside.replace(path)


def _png(figure: Figure, note: str) -> bytes:
    figure.supxlabel(
        "\n".join(filter(None, (note, DISCLAIMER))), fontsize=8, color=_GREY
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
