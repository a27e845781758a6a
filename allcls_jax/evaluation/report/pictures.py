"""The figures of a page, each with what a reader who cannot see it is told."""

from collections.abc import Sequence
from typing import Any

from allcls_jax.evaluation import plots_curves, plots_rows
from allcls_jax.evaluation.plots_rows import point
from allcls_jax.evaluation.plots_style import Figure, to_svg
from allcls_jax.evaluation.report.numbers import (
    PAPER_MATRIX,
    count,
    label,
    number,
    percent,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Builder, Picture
from allcls_jax.evaluation.report.record import CROSS_VALIDATION, Folder, Missing

# Figures within [0, 1] of which more is better: they share an axis.
_SHARES = (
    "auroc",
    "average_precision",
    "weighted_f1",
    "balanced_accuracy",
    "accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
)


def picture(
    figure: Figure, *, name: str, caption: str, told: str, notes: Sequence[str]
) -> Picture:
    """Returns a figure of the page, signed with the notes of its run.

    Args:
      figure: as `plots_*` return it.
      name: unique in the page.
      caption: stands below it.
      told: what it shows, in words, to those who cannot see it.
      notes: of the run.
    """
    svg = to_svg(figure, name=name, title=told, note="; ".join(notes))
    return Picture(name=name, svg=svg, caption=caption)


def curve(folder: Folder, name: str, x: str) -> dict[str, Any]:
    """Returns a curve of `evaluation.json`, or raises Missing where it is undefined.

    Args:
      folder: of the run.
      name: of the curve.
      x: name of its abscissae.
    """
    found = folder.evaluation(name)
    if not found[x]:
        raise Missing(f"undefined, {found.get('reason')}")
    return found


def intervals(folder: Folder) -> Picture:
    """Returns the figures by image with both kinds of interval."""
    entries = folder.evaluation("figures", "by_image")
    names = [
        name
        for name in _SHARES
        if name in entries and entries[name].get("value") is not None
    ]
    if not names:
        raise Missing("every figure is undefined")
    sure = percent(float(folder.evaluation("settings").get("confidence") or 0.95))
    return picture(
        plots_rows.forest(
            [label(name) for name in names],
            {"": [point(entries[name], both=True) for name in names]},
            label=f"by image, {sure} intervals",
        ),
        name="intervals",
        caption="Line: interval over groups of patients. Ticks: the interval that "
        "would come out if every image were a patient of its own.",
        told="Figures by image with their intervals: "
        + "; ".join(f"{label(name)} {with_interval(entries[name])}" for name in names),
        notes=folder.notes,
    )


def confusion(folder: Folder) -> Picture:
    """Returns the confusion matrix of the test images."""
    matrix = _matrix(folder)
    return picture(
        plots_rows.matrix(matrix, "This run, test images"),
        name="confusion",
        caption="This run at threshold 0.5. Rows: what a cell is. Columns: what it was "
        "called. Shares are of the row." + _which_pass(folder),
        told=f"Confusion matrix of this run: {_in_words(matrix)}",
        notes=folder.notes,
    )


def confusion_of_paper(folder: Folder) -> Picture:
    """Returns the paper's own matrix."""
    del folder
    return picture(
        plots_rows.matrix(PAPER_MATRIX, "The paper's claim"),
        name="confusion-paper",
        caption="The paper's table 2: 99.19 % of 4,453 images. A claim of the paper, "
        "not measured here; its class totals, 2,227 and 2,226, are not those of the "
        "real test parts.",
        told=f"The paper's confusion matrix: {_in_words(PAPER_MATRIX)}",
        notes=["The paper's claim, not measured here"],
    )


def roc(folder: Folder) -> Picture:
    """Returns the ROC curve with its band."""
    found = curve(folder, "roc", "fpr")
    entry = folder.evaluation("figures", "by_image").get("auroc")
    return picture(
        plots_curves.roc({"": found}),
        name="roc",
        caption=f"ROC curve. AUROC {with_interval(entry)}. Band: interval over groups.",
        told="Sensitivity against the rate of false alarms. Area under the curve "
        f"{with_interval(entry)}.",
        notes=folder.notes,
    )


def precision_recall(folder: Folder) -> Picture:
    """Returns precision against recall with its band."""
    found = curve(folder, "precision_recall", "recall")
    entry = folder.evaluation("figures", "by_image").get("average_precision")
    matrix = _matrix(folder)
    total = sum(map(sum, matrix))
    return picture(
        plots_curves.precision_recall(
            {"": found}, sum(matrix[0]) / total if total else None
        ),
        name="precision-recall",
        caption=f"Precision and recall. Average precision {with_interval(entry)}. "
        "Band: interval over groups.",
        told=f"Precision against recall. Average precision {with_interval(entry)}.",
        notes=folder.notes,
    )


def histogram(folder: Folder) -> Picture:
    """Returns how the probabilities of both classes are spread."""
    content = folder.evaluation("histogram")
    half = [
        sum(content["ALL"][len(content["ALL"]) // 2 :]),
        sum(content["HEM"][: len(content["HEM"]) // 2]),
    ]
    return picture(
        plots_curves.histogram(content),
        name="histogram",
        caption="Predicted probabilities: cells that are ALL upwards, HEM downwards. "
        "What lies on the wrong side of the dashed line is called wrongly at 0.5.",
        told=f"Histogram of probabilities. {count(half[0])} of "
        f"{count(sum(content['ALL']))} ALL cells lie above 0.5, {count(half[1])} of "
        f"{count(sum(content['HEM']))} HEM cells below.",
        notes=folder.notes,
    )


def reliability(folder: Folder) -> Picture:
    """Returns predicted against observed, before and after the temperature."""
    content = folder.evaluation("calibration")
    bins = {
        "as predicted": content["reliability_before"],
        "after temperature": content["reliability_after"],
    }
    bins = {name: points for name, points in bins.items() if points}
    if not bins:
        raise Missing("evaluation.json holds no bins")
    points = bins.get("as predicted") or []
    return picture(
        plots_curves.reliability(bins),
        name="reliability",
        caption="Reliability: bins of equally many images. Below the diagonal the "
        "model claims more ALL than there is. Bars: intervals over groups.",
        told="Share of ALL against predicted probability. As predicted: "
        + ", ".join(
            f"{number(row['mean_probability'], 2)} gives {number(row['share_all'], 2)}"
            for row in points
        ),
        notes=folder.notes,
    )


def abstention(folder: Folder) -> Picture:
    """Returns the error against the share of images answered."""
    points = folder.evaluation("abstention")
    ends = [points[0], points[-1]]
    return picture(
        plots_curves.abstention(points),
        name="abstention",
        caption="Error if only the most confident images are answered, by confidence "
        "of the calibrated probability. Band: interval over groups.",
        told="Error against coverage: "
        + "; ".join(
            f"{number(row['error'])} at {percent(row['coverage'], 0)} answered"
            for row in ends
        ),
        notes=folder.notes,
    )


def learning(folder: Folder) -> list[Picture]:
    """Returns loss and accuracy by epoch."""
    histories = list(folder.histories().values())
    several = len(histories) > 1
    found = []
    for quantity in ("loss", "accuracy"):
        last = [history[-1] for history in histories]
        told = f"{quantity.capitalize()} by epoch of training and validation. " + (
            f"{len(histories)} models, up to {max(len(h) for h in histories)} epochs."
            if several
            else f"At the last epoch {number(last[0][f'train_{quantity}'])} in "
            f"training and {number(last[0][f'validation_{quantity}'])} in validation."
        )
        found.append(
            picture(
                plots_curves.learning(histories, quantity),
                name=f"learning-{quantity}",
                caption=f"{quantity.capitalize()} by epoch"
                + (
                    f", {len(histories)} models, a thin line each. "
                    if several
                    else ". "
                )
                + "Kept is the state of lowest validation loss. Training is told of "
                "what the network saw: with dropout, and images varied or mixed where "
                "the settings say so.",
                told=told,
                notes=folder.notes,
            )
        )
    return found


PICTURES: dict[str, Builder] = {
    "intervals_figure": intervals,
    "confusion_figure": confusion,
    "confusion_of_paper": confusion_of_paper,
    "roc": roc,
    "precision_recall": precision_recall,
    "histogram": histogram,
    "reliability": reliability,
    "abstention_figure": abstention,
    "learning": learning,
}


def _which_pass(folder: Folder) -> str:
    """Returns which models' calls a confusion matrix counts, where there are many."""
    if folder.kind != CROSS_VALIDATION:
        return ""
    passes = folder.evaluation("counts").get("passes") or 1
    folds = " All test folds together"
    return f"{folds}, of the first of {passes} passes." if passes > 1 else f"{folds}."


def _matrix(folder: Folder) -> list[list[int]]:
    matrix = folder.evaluation("confusion_matrix")
    return [[int(value) for value in row] for row in matrix]


def _in_words(matrix: Sequence[Sequence[int]]) -> str:
    (all_all, all_hem), (hem_all, hem_hem) = matrix
    return (
        f"of the ALL cells {count(all_all)} were called ALL and {count(all_hem)} HEM; "
        f"of the HEM cells {count(hem_hem)} HEM and {count(hem_all)} ALL"
    )
