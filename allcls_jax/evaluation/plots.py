"""The pictures that a run leaves in its folder, as PNG.

Each carries the note of its run (synthetic cells, random weights, leaky split) and the
disclaimer. The page of `report` draws the same figures as SVG.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from allcls_jax import DISCLAIMER
from allcls_jax.evaluation import plots_curves, plots_rows
from allcls_jax.evaluation.plots_style import canvas, styled, to_png

__all__ = [
    "DISCLAIMER",
    "confusion_matrix",
    "curves",
    "ladder",
    "ladder_figure",
]

_LADDER = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "auroc": "AUROC"}


def curves(history: Sequence[Mapping[str, int | float]], note: str) -> bytes:
    """Returns a PNG of loss and accuracy by epoch, of training and validation.

    Args:
      history: records of `metrics.jsonl`, at least one.
      note: what a reader must know of the run.
    """
    return to_png(_curves(history), note)


def confusion_matrix(matrix: Sequence[Sequence[int]], title: str, note: str) -> bytes:
    """Returns a PNG of a confusion matrix in the paper's order.

    Args:
      matrix: [[ALL→ALL, ALL→HEM], [HEM→ALL, HEM→HEM]], counts.
      title: of which images.
      note: what a reader must know of the run.
    """
    return to_png(plots_rows.matrix(matrix, title, width=4.6), note)


def ladder(content: Mapping[str, Any], note: str) -> bytes:
    """Returns a PNG of the ladder of leaks beside the paper's accuracy.

    Args:
      content: of `ladder.json`.
      note: what a reader must know of the runs.
    """
    return to_png(ladder_figure(content), note)


def ladder_figure(content: Mapping[str, Any]) -> Figure:
    """Returns the figures of each rung, by image, and the paper's accuracy as a line.

    Args:
      content: of `ladder.json`: `rungs` with `title`, `leaky` and
        `figures.by_image`, and `paper.accuracy`.
    """
    rungs = content["rungs"]
    paper = content.get("paper", {}).get("accuracy")
    return plots_rows.forest(
        [
            f"{rung['title']}\n(leaky)" if rung.get("leaky") else str(rung["title"])
            for rung in rungs
        ],
        {
            shown: [
                plots_rows.point(rung["figures"]["by_image"].get(name))
                for rung in rungs
            ]
            for name, shown in _LADDER.items()
        },
        label="by image, interval over groups",
        line=None
        if paper is None
        else plots_rows.Line(paper, f"the paper's accuracy, {paper:.4f}"),
    )


@styled
def _curves(history: Sequence[Mapping[str, int | float]]) -> Figure:
    figure, (left, right) = canvas(3.9, width=9, columns=2)
    plots_curves.draw_learning(left, [history], "loss")
    plots_curves.draw_learning(right, [history], "accuracy")
    left.legend()
    return figure
