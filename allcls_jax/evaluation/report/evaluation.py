"""The tables of a page about all test images: figures, calibration, spread."""

from collections.abc import Mapping, Sequence
from typing import Any

from allcls_jax.evaluation.report.numbers import (
    UNDEFINED,
    Value,
    count,
    interval,
    label,
    number,
    ordered,
    percent,
    reasons,
    reasons_of_rows,
    span,
    with_interval,
)
from allcls_jax.evaluation.report.parts import Builder, Headline, Table
from allcls_jax.evaluation.report.record import CROSS_VALIDATION, Folder, Missing

ONE_TEST_SET = "a single run has one test set; a cross-validation shows a spread"

_FIRST = ("auroc", "weighted_f1", "sensitivity", "specificity")
_SMALL = ("accuracy", "weighted_f1", "auroc", "sensitivity", "specificity")
_CALLS = ("balanced_accuracy", "weighted_f1", *_SMALL[3:], "ppv", "npv", "accuracy")
_CALIBRATION = {
    "brier": "brier",
    "ece": "ece",
    "slope": "calibration_slope",
    "intercept": "calibration_intercept",
    "log_loss": "log_loss",
}
_THRESHOLDS = {"youden": "Youden's", "sensitivity_0.95": "sensitivity 0.95"}


def headline(folder: Folder) -> Headline:
    """Returns the four figures to be read first."""
    entries = folder.evaluation("figures", "by_image")
    counts = folder.evaluation("counts")
    return Headline(
        rows=[
            (label(name), number(entries[name].get("value")), interval(entries[name]))
            for name in _FIRST
            if name in entries
        ],
        basis=(
            f"{count(counts.get('images'))} test images of "
            f"{count(counts.get('patients'))} patients in "
            f"{count(counts.get('groups'))} groups; "
            f"{percent(_confidence(folder))} intervals over groups"
        ),
    )


def warnings(folder: Folder) -> list[str]:
    """Returns what the evaluation warns of."""
    return [str(line) for line in folder.evaluation().get("warnings") or []]


def figures(folder: Folder) -> Table:
    """Returns every figure by image, with patients equal, and by patient."""
    every = folder.evaluation("figures")
    by_image = folder.evaluation("figures", "by_image")
    equal, patient = every.get("patients_equal") or {}, every.get("by_patient") or {}
    settings = folder.evaluation("settings")
    sure = percent(_confidence(folder))
    rows = [
        [
            label(name),
            number(by_image[name].get("value")),
            interval(by_image[name]),
            interval(by_image[name], "image_"),
            with_interval(equal[name]) if name in equal else "–",
            with_interval(patient[name]) if name in patient else "–",
        ]
        for name in ordered(by_image)
    ]
    return Table(
        caption="Figures of the test images at threshold 0.5, probability as predicted",
        header=(
            "Figure",
            "By image",
            f"{sure} over groups",
            f"{sure} over images",
            "Patients equal",
            "By patient",
        ),
        rows=rows,
        inline=True,
        notes=[
            f"Intervals: {count(settings.get('num_resamples'))} bootstrap resamples of "
            "groups of patients, stratified by class. The interval over images treats "
            "cells of one patient as independent; it is shown to be compared, not to "
            "be used.",
            f"PPV and NPV are at a prevalence of ALL of {settings['prevalence']:g}, "
            "from sensitivity and specificity.",
            *reasons(by_image),
            *(f"Patients equal: {line}" for line in reasons(equal)),
            *(f"By patient: {line}" for line in reasons(patient)),
        ],
    )


def calibration(folder: Folder) -> Table:
    """Returns calibration figures before and after a temperature."""
    content = folder.evaluation("calibration")
    before, after = content["before"], content["after"]
    values = [row["value"] for row in content.get("temperature") or []]
    known = [value for value in values if value is not None]
    return Table(
        caption="Calibration on the test images, before and after temperature scaling",
        header=("Figure", "As predicted", "After temperature"),
        rows=[
            [
                label(name),
                *(with_interval(entries.get(key)) for entries in (before, after)),
            ]
            for key, name in _CALIBRATION.items()
            if key in before
        ],
        notes=[
            f"Temperature, fitted on validation patients: {span(known)}."
            if known
            else "No temperature could be fitted; both columns are the same.",
            *reasons({name: before.get(key) for key, name in _CALIBRATION.items()}),
        ],
    )


def thresholds(folder: Folder) -> Table:
    """Returns what each threshold realises on the test images."""
    content = folder.evaluation("thresholds")
    names = [name for name in _CALLS if name in content[0]["figures"]]
    rows = []
    for row in content:
        values = [run["value"] for run in row.get("values") or []]
        known = [value for value in values if value is not None]
        rows.append(
            [
                _THRESHOLDS.get(row["name"], f"fixed at {row['name']}"),
                span(known) if known else "–",
                *(with_interval(row["figures"].get(name)) for name in names),
            ]
        )
    return Table(
        caption="Thresholds and what they realise on the test images",
        header=("Threshold", "Value", *(label(name) for name in names)),
        rows=rows,
        notes=[
            "Below each figure its interval over groups. Youden's threshold and the "
            "one of sensitivity 0.95 are fitted on validation patients; none has seen "
            "a test image.",
            *reasons_of_rows(content, names),
        ],
    )


def abstention(folder: Folder) -> Table:
    """Returns the error at a few shares of images answered."""
    points = folder.evaluation("abstention")
    rows = []
    for wanted in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        nearest = min(points, key=lambda point: abs(point["coverage"] - wanted))
        if abs(nearest["coverage"] - wanted) < 0.02:
            rows.append(
                [
                    percent(nearest["coverage"], 0),
                    number(nearest["error"]),
                    interval(nearest),
                ]
            )
    return Table(
        caption="Error if the least confident images are left unanswered",
        header=("Answered", "Wrong among those", "Interval"),
        rows=rows,
    )


def folds(folder: Folder) -> Table:
    """Returns figures of each test fold with their spread over seeds."""
    if folder.kind != CROSS_VALIDATION:
        raise Missing(ONE_TEST_SET)
    content = folder.evaluation("by_fold")
    names = [name for name in _SMALL if name in content[0]["figures"]]
    return Table(
        caption="Each test fold, mean over seeds and (smallest to largest)",
        header=("Fold", "Images", "Patients", *(label(name) for name in names)),
        rows=[
            [
                fold_name(row, content),
                count(row.get("images")),
                count(row.get("patients")),
                *(_mean_and_span(row["figures"].get(name)) for name in names),
            ]
            for row in content
        ],
    )


def spread(folder: Folder) -> Table:
    """Returns the spread of figures over passes."""
    if folder.kind != CROSS_VALIDATION:
        raise Missing(ONE_TEST_SET)
    content = folder.evaluation("spread")
    passes = folder.evaluation("counts").get("passes")
    if passes == 1:
        raise Missing("there is one pass over the folds only; more seeds show a spread")
    return Table(
        caption="Spread over passes (seeds and repeats), all folds of a pass pooled",
        header=("Figure", "Mean", "Standard deviation", "Smallest", "Largest"),
        rows=[
            [label(name), *(number(content[name].get(key)) for key in _SPREAD)]
            for name in ordered(content)
            if content[name] is not None
        ],
        notes=[f"{count(passes)} passes. Every image is tested once in each."],
    )


_SPREAD = ("mean", "sd", "min", "max")


def fold_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns "fold 2", with its repeat where there are several."""
    several = len({other.get("repeat") for other in rows}) > 1
    name = f"fold {row['test_fold']}"
    return f"{name}, repeat {row['repeat']}" if several else name


def _confidence(folder: Folder) -> float:
    return float(folder.evaluation("settings").get("confidence") or 0.95)


def _mean_and_span(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry.get("mean") is None:
        return UNDEFINED
    if entry["min"] == entry["max"]:
        return number(entry["mean"])
    return Value(
        number(entry["mean"]), f"{number(entry['min'])}–{number(entry['max'])}"
    )


EVALUATION_ITEMS: dict[str, Builder] = {
    "headline": headline,
    "warnings": warnings,
    "figures": figures,
    "calibration": calibration,
    "thresholds": thresholds,
    "abstention": abstention,
    "folds": folds,
    "spread": spread,
}
