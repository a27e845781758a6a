"""Every figure of a predictions table, with intervals: `evaluation.json`.

The table is all that is read, and every figure is one of test rows. What is undefined
is None with a `reason` beside it, never NaN.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from allcls_jax.data.cells import ALL, HEM
from allcls_jax.evaluation import (
    breakdown,
    fitting,
    held_fixed,
    metrics,
    views,
    weighted,
)
from allcls_jax.evaluation.metrics import NAMES
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.uncertainty import Draw, band, bootstrap, resamples
from allcls_jax.evaluation.views import Entry, Given, View

# A patient's mean probability is no probability that its calibration could be told of.
PATIENT_NAMES = tuple(
    name for name in NAMES if name not in metrics.PROBABILITY_NAMES or name == "brier"
)
# Of a class; with fewer a percentile interval is too narrow more often than it says.
_FEW_GROUPS = 10

_BINS = np.linspace(0, 1, 21)  # of the histogram


def assess(
    predictions: Predictions,
    *,
    prevalence: float = 0.5,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Returns every figure, curve and table of the test rows, as JSON has them.

    Args:
      predictions: of one or more runs, validation and test.
      prevalence: share of ALL that PPV and NPV are stated for, in (0, 1).
      num_resamples: of the bootstrap, at least 100.
      seed: of the bootstrap.
      confidence: of the intervals, in (0, 1).

    Raises:
      InputError: if the table breaks a rule of `Predictions.check`, or a setting is out
        of its range.
    """
    given = views.given(
        predictions,
        prevalence=prevalence,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
    )
    content, samples, before = _summary(predictions, given)
    fitted = fitting.fit(predictions)
    content["warnings"] += fitted.warnings()
    calibrated = fitting.calibrated(given, fitted)
    return {
        **content,
        "calibration": fitting.calibration(given, fitted, calibrated, before),
        "thresholds": fitting.thresholds(given, fitted),
        "abstention": fitting.abstention(given, calibrated),
        **_curves(given, samples),
        "histogram": _histogram(given.test),
        **breakdown.spreads(given.test, prevalence=prevalence),
        "patients": breakdown.patients(given.test),
        "subgroups": breakdown.subgroups(given),
        "within_area": held_fixed.within_area(given),
        "mistakes": breakdown.mistakes(given.test),
    }


def summarise(
    predictions: Predictions,
    *,
    prevalence: float = 0.5,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Returns the `settings`, `counts`, `warnings` and `figures` of `assess` alone.

    Arguments and errors are the same.
    """
    given = views.given(
        predictions,
        prevalence=prevalence,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
    )
    return _summary(predictions, given)[0]


def rows(
    assessment: Mapping[str, Any],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows of a table of the figures, 80 columns wide.

    Args:
      assessment: from `assess` or `summarise`.
    """
    found = assessment["figures"]
    header = (
        "figure",
        "by image",
        f"{assessment['settings']['confidence'] * 100:g} % over\ngroups",
        "over\nimages",
        "patients\nequal",
        "by\npatient",
    )
    body = []
    for name in NAMES:
        by_image = found["by_image"][name]
        by_patient = found["by_patient"].get(name)
        body.append(
            (
                name.replace("calibration_", "calib. ").replace("_", " "),
                _number(by_image["value"]),
                _span(by_image),
                _span(by_image, "image_"),
                _number(found["patients_equal"][name]["value"]),
                "–" if by_patient is None else _number(by_patient["value"]),
            )
        )
    return header, body


def interval(entry: Mapping[str, Any], key: str = "value") -> str:
    """Returns a figure with its interval as text: `0.812 [0.754, 0.861]`."""
    low, high = entry["low"], entry["high"]
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return _number(entry[key]) + ends


def _summary(
    predictions: Predictions, given: Given
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Entry]]:
    """Returns the content of `summarise`, and what it has of figures by image.

    Returns:
      The content; name → resamples of figures and curves; and the figures again, with
      the log loss.
    """
    test, drawn = given.test, given.drawn
    seen = {
        "by_image": given.view((*NAMES, "log_loss")),
        "patients_equal": given.view(patients_equal=True),
    }
    by_patient = views.by_patient(given.passes, drawn)
    if by_patient:
        seen["by_patient"] = View(by_patient, PATIENT_NAMES, given.prevalence)
    main = seen["by_image"]
    draws: dict[str, Draw] = {key: view.draw for key, view in seen.items()}
    draws["by_image"] = lambda counts: main.draw(counts, weighted.CURVES)
    samples = bootstrap(drawn, main.size, draws)
    figures = {
        key: view.entries(drawn, samples[key], confidence=given.confidence)
        for key, view in seen.items()
    }
    if not by_patient:
        figures["by_patient"] = views.undefined(
            PATIENT_NAMES, "every patient has images of both classes"
        )

    over_images = resamples(
        test.image_id, test.label, number=drawn.number, seed=drawn.seed
    )
    naive = View(
        views.by_image(given.passes, over_images, unit="image_id"),
        main.names,
        given.prevalence,
    )
    entries = naive.entries(
        over_images,
        bootstrap(over_images, naive.size, {"": naive.draw})[""],
        confidence=given.confidence,
        noun="image",
    )
    for name, entry in figures["by_image"].items():
        entry["image_low"] = entries[name]["low"]
        entry["image_high"] = entries[name]["high"]
    by_image = dict(figures["by_image"])
    del figures["by_image"]["log_loss"]
    counts = _counts(test)
    content = {
        "settings": {
            "prevalence": given.prevalence,
            "num_resamples": drawn.number,
            "confidence": given.confidence,
            "seed": drawn.seed,
            "unit": "group",
            "positive": "ALL",
        },
        "counts": counts,
        "warnings": [
            *_warnings(predictions, given, counts),
            *_gaps(figures, drawn.number),
        ],
        "figures": figures,
    }
    return content, samples["by_image"], by_image


def _counts(test: Predictions) -> dict[str, int]:
    """Returns how many there are of what, each counted once."""
    return {
        "images": len(np.unique(test.image_id)),
        "patients": len(np.unique(test.patient)),
        "groups": len(np.unique(test.group)),
        **{
            f"{unit}s_{name}": len(np.unique(getattr(test, unit)[test.label == label]))
            for unit in ("patient", "group")
            for name, label in (("all", ALL), ("hem", HEM))
        },
        "runs": len(list(test.runs())),
        "passes": len(list(test.passes())),
    }


def _warnings(
    predictions: Predictions, given: Given, counts: Mapping[str, int]
) -> Iterator[str]:
    """Yields what a reader of the figures must know."""
    for name in ("ALL", "HEM"):
        groups = counts[f"groups_{name.lower()}"]
        patients = counts[f"patients_{name.lower()}"]
        if groups < _FEW_GROUPS:
            yield (
                f"only {groups} groups ({patients} patients) have test images of "
                f"{name}: with fewer than {_FEW_GROUPS} the intervals are too narrow"
            )
    if alone := given.drawn.alone():
        yield (
            f"{alone} group(s) are the only ones of their kind (ALL, HEM or both) and "
            "stand in every resample: the intervals are too narrow"
        )
    mixed = counts["patients_all"] + counts["patients_hem"] - counts["patients"]
    if mixed:
        yield (
            f"{mixed} patient(s) have images of both classes: they are left out of the "
            "figures by patient"
        )
    if shared := predictions.shared_groups():
        yield (
            f"{len(shared)} group(s) of patients stand in validation and test of one "
            "run: the figures flatter"
        )
    folds = max(len(np.unique(rows.test_fold)) for rows in given.passes)
    if folds > 1:
        yield (
            f"AUROC, average precision and calibration pool {folds} test folds, each "
            "scored by its own model: where the models are calibrated differently they "
            "are not those of any one model; see the figures by fold"
        )
    tested = {frozenset(rows.image_id.tolist()) for rows in given.passes}
    if len(tested) > 1:
        yield "the passes do not test the same images: their means mix different cells"


def _gaps(figures: Mapping[str, Mapping[str, Entry]], number: int) -> Iterator[str]:
    """Yields which figures or intervals are undefined, and why."""
    found: dict[str, list[str]] = {}
    for way, entries in figures.items():
        for name, entry in entries.items():
            called = f"{name} {way}".replace("_", " ")
            if "reason" in entry:
                what = "interval" if entry["value"] is not None else "figure"
                found.setdefault(f"{what}: {entry['reason']}", []).append(called)
            if "left_out" in entry:
                why = f"left out of the interval: {entry['left_out']:,} of {number:,} "
                why += "resamples, in which it is undefined"
                found.setdefault(why, []).append(called)
    for why, names in found.items():
        prefix = "" if why.startswith("left") else "undefined "
        yield f"{', '.join(names)}: {prefix}{why}"


def _curves(given: Given, samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `roc` and `precision_recall`, each with the band over groups."""
    test, drawn = given.test, given.drawn
    certain = not drawn.lacks(drawn.index(test.group), test.label, "group")
    missing = metrics.lacks("auroc", test.label)
    found = View(given.view().passes, weighted.CURVES, given.prevalence).draw(
        np.ones((1, len(drawn.units)))
    )
    result: dict[str, Any] = {}
    for key, x, name, grid in (
        ("roc", "fpr", "tpr", weighted.FALSE_ALARMS),
        ("precision_recall", "recall", "precision", weighted.RECALLS),
    ):
        # A pass that lacks a class has no curve; nor has the mean.
        if missing or np.isnan(found[name]).any():
            empty: dict[str, Any] = {part: [] for part in (x, name, "low", "high")}
            result[key] = empty | {"reason": missing or "a pass lacks a class"}
            continue
        low, high = band(samples[name], given.confidence) if certain else ([], [])
        result[key] = {
            x: grid.tolist(),
            name: found[name][0].tolist(),
            "low": low,
            "high": high,
        }
    return result


def _histogram(test: Predictions) -> dict[str, list[float]]:
    """Returns how many predictions fall into each of twenty bins."""
    result = {"edges": _BINS.tolist()}
    for name, label in (("ALL", ALL), ("HEM", HEM)):
        among = test.probability[test.label == label]
        result[name] = np.histogram(among, _BINS)[0].tolist()
    return result


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _span(entry: Mapping[str, Any], prefix: str = "") -> str:
    """Returns `0.754…0.861`, nothing where the figure itself is undefined."""
    low, high = entry[f"{prefix}low"], entry[f"{prefix}high"]
    if low is None or high is None:
        return "" if entry["value"] is None else "undefined"
    return f"{low:.3f}…{high:.3f}"
