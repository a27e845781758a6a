"""Test rows apart: by run and pass, by patient, by subgroup, and the worst mistakes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from allcls_jax.data.cells import ALL, NO_FOLD
from allcls_jax.evaluation import metrics
from allcls_jax.evaluation.metrics import NAMES, THRESHOLD
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.views import Given

SUBGROUP_NAMES = ("weighted_f1", "auroc", "sensitivity", "specificity", "accuracy")

# The label of a patient with images of both classes.
BOTH = -1

NUM_MISTAKES = 24


class Subgroup(NamedTuple):
    """Some of the test rows."""

    kind: str
    name: str
    rows: np.ndarray  # mask (n,) bool


def spreads(test: Predictions, *, prevalence: float) -> dict[str, Any]:
    """Returns `confusion_matrix`, `by_fold`, `by_pass` and `spread`.

    A standard deviation is one of a sample, and None of a single value. It tells how
    much seeds and drawings of folds matter, not how much patients do.

    Args:
      test: the test rows.
      prevalence: share of ALL that PPV and NPV are stated for.
    """
    folds: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for run, rows in test.runs():
        found = metrics.figures(rows, prevalence=prevalence)
        folds.setdefault((run.repeat, run.test_fold), []).append(found)
    passes = [
        (key, metrics.figures(rows, prevalence=prevalence))
        for key, rows in test.passes()
    ]
    return {
        "confusion_matrix": passes[0][1]["confusion_matrix"],
        "by_fold": [
            {
                "repeat": repeat,
                "test_fold": fold,
                "images": found[0]["num_images"],
                "patients": found[0]["num_patients"],
                "figures": _spread(found, values=True),
            }
            for (repeat, fold), found in folds.items()
        ],
        "by_pass": [
            {
                **key._asdict(),
                "figures": {name: found[name] for name in NAMES},
                "confusion_matrix": found["confusion_matrix"],
            }
            for key, found in passes
        ],
        "spread": _spread([found for _, found in passes]),
    }


def patients(test: Predictions) -> list[dict[str, Any]]:
    """Returns what became of each patient's images, over all passes.

    `label` is 1 (ALL), 0 (HEM) or `BOTH`; `images` counts each once.
    """
    found = []
    for patient in np.unique(test.patient):
        rows = test.take(test.patient == patient)
        labels = np.unique(rows.label).tolist()
        called = rows.probability > THRESHOLD
        found.append(
            {
                "patient": str(patient),
                "group": str(rows.group[0]),
                "label": labels[0] if len(labels) == 1 else BOTH,
                "images": len(np.unique(rows.image_id)),
                "mean_probability": float(np.mean(rows.probability)),
                "accuracy": float(np.mean(called == (rows.label == ALL))),
                "share_called_all": float(np.mean(called)),
                "test_folds": np.unique(rows.test_fold).tolist(),
            }
        )
    return found


def mistakes(test: Predictions) -> list[dict[str, Any]]:
    """Returns the images that are most confidently called wrongly, the worst first.

    An image's probability is its mean over passes.
    """
    image, first, index, count = np.unique(
        test.image_id, return_index=True, return_inverse=True, return_counts=True
    )
    probability = np.bincount(index, test.probability) / count
    rows = test.take(first)
    distance = np.abs((rows.label == ALL) - probability)
    wrong = np.flatnonzero((probability > THRESHOLD) != (rows.label == ALL))
    worst = wrong[np.argsort(-distance[wrong], kind="stable")][:NUM_MISTAKES]
    return [
        {
            "image_id": str(image[i]),
            "patient": str(rows.patient[i]),
            "group": str(rows.group[i]),
            "label": int(rows.label[i]),
            "probability": float(probability[i]),
            "area": int(rows.area[i]),
            "test_fold": int(rows.test_fold[i]),
        }
        for i in worst
    ]


def subgroups(given: Given) -> list[dict[str, Any]]:
    """Returns the figures of subgroups of the test images, with intervals."""
    test = given.test
    found = [
        *thirds_by_area(test),
        *_test_folds(test),
        *_official_folds(test),
        *_thirds_by_patient_size(test),
    ]
    if not found:
        return []
    views = {
        str(number): given.view(
            SUBGROUP_NAMES,
            passes=[
                rows.take(mask)
                for rows, mask in zip(
                    given.passes, given.split(subgroup.rows), strict=True
                )
                if mask.any()
            ],
        )
        for number, subgroup in enumerate(found)
    }
    entries = given.entries(views)
    return [
        {
            "kind": subgroup.kind,
            "name": subgroup.name,
            "images": len(np.unique(test.image_id[subgroup.rows])),
            "patients": len(np.unique(test.patient[subgroup.rows])),
            "figures": entries[str(number)],
        }
        for number, subgroup in enumerate(found)
    ]


def thirds_by_area(test: Predictions) -> Iterator[Subgroup]:
    """Yields the smallest, middle and largest cells; none if they are too alike."""
    _, first = np.unique(test.image_id, return_index=True)
    low, high = _thirds(test.area[first])
    for name, rows in _cut(test.area, low, high, "{:,} px"):
        yield Subgroup("cell area", name, rows)


def _spread(
    found: Sequence[dict[str, Any]], *, values: bool = False
) -> dict[str, dict[str, Any]]:
    """Returns mean, deviation and range of figures, None where one is undefined."""
    result: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        column = [figures[name] for figures in found]
        if None in column:
            result[name] = dict.fromkeys(("mean", "sd", "min", "max"))
        else:
            result[name] = {
                "mean": float(np.mean(column)),
                "sd": float(np.std(column, ddof=1)) if len(column) > 1 else None,
                "min": min(column),
                "max": max(column),
            }
        if values:
            result[name]["values"] = column
    return result


def _thirds_by_patient_size(test: Predictions) -> Iterator[Subgroup]:
    _, first = np.unique(test.image_id, return_index=True)
    patient, count = np.unique(test.patient[first], return_counts=True)
    size = count[np.searchsorted(patient, test.patient)]
    low, high = _thirds(count)
    for name, rows in _cut(size, low, high, "{:,} images"):
        yield Subgroup("patient size", name, rows)


def _test_folds(test: Predictions) -> Iterator[Subgroup]:
    keys = np.unique(np.stack([test.repeat, test.test_fold], axis=1), axis=0)
    several = len(np.unique(test.repeat)) > 1
    for repeat, fold in keys.tolist() if len(keys) > 1 else ():
        name = f"fold {fold}" + (f", repeat {repeat}" if several else "")
        rows = (test.repeat == repeat) & (test.test_fold == fold)
        yield Subgroup("test fold", name, rows)


def _official_folds(test: Predictions) -> Iterator[Subgroup]:
    folds = np.unique(test.fold[test.fold != NO_FOLD])
    # The folds of the split themselves are there already.
    if len(folds) < 2 or np.array_equal(test.fold, test.test_fold):
        return
    for fold in folds.tolist():
        yield Subgroup("official fold", f"fold {fold}", test.fold == fold)


def _thirds(values: np.ndarray) -> tuple[int, int]:
    low, high = np.quantile(values, (1 / 3, 2 / 3), method="inverted_cdf")
    return int(low), int(high)


def _cut(
    values: np.ndarray, low: int, high: int, what: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what is up to `low`, up to `high` and above, where each has something."""
    if not (np.min(values) <= low < high < np.max(values)):
        return
    limits = [what.format(value) for value in (low, high)]
    yield f"smallest third (up to {limits[0]})", values <= low
    yield f"middle third (up to {limits[1]})", (values > low) & (values <= high)
    yield f"largest third (above {limits[1]})", values > high
