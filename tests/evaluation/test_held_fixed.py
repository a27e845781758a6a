"""What is left of a score with the cell's area held fixed."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from allcls_jax.evaluation import held_fixed, views
from allcls_jax.evaluation.breakdown import thirds_by_area
from allcls_jax.evaluation.held_fixed import CORRELATIONS, THIRD_NAMES, within_area
from allcls_jax.evaluation.predictions import Predictions, concatenate
from tests.evaluation.tables import rows


def given_of(table: Predictions, number: int = 200) -> views.Given:
    return views.given(
        table, prevalence=0.5, num_resamples=number, seed=0, confidence=0.95
    )


def found_in(table: Predictions, number: int = 200) -> dict[str, Any]:
    return within_area(given_of(table, number))


def planted(
    *, by_area: float, by_signal: float, number: int = 3000, seed: int = 0
) -> Predictions:
    """Cells of 60 patients; those of ALL are larger, and differ in a signal too."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(60, size=number)
    label = (patient < 40).astype(int)
    # In each class a part of the same normal curve of sizes, so that area is all that
    # P(ALL) can be told from where there is no signal.
    log_area = 0.6 * label + rng.normal(size=number)
    logit = by_area * log_area + by_signal * (2 * label - 1) + rng.normal(size=number)
    table = rows(
        label, 1 / (1 + np.exp(-logit)), patient=[f"p{i}" for i in patient.tolist()]
    )
    return dataclasses.replace(table, area=(3000 * np.exp(log_area / 4)).astype(int))


def of_residuals(table: Predictions) -> float:
    """The partial correlation as what regression of ranks on those of area leaves."""
    ranks = [stats.rankdata(x) for x in (table.label, table.probability, table.area)]
    left = [y - np.polyval(np.polyfit(ranks[2], y, 1), ranks[2]) for y in ranks[:2]]
    return float(np.corrcoef(*left)[0, 1])


def test_figures_are_those_of_scipy_and_scikit_learn():
    table = planted(by_area=0.5, by_signal=0.4)
    found = found_in(table)
    expected = {
        "correlation": stats.spearmanr(table.label, table.probability)[0],
        "correlation_with_area": stats.spearmanr(table.label, table.area)[0],
        "partial_correlation": of_residuals(table),
    }
    parts = [table.take(third.rows) for third in thirds_by_area(table)]
    pairs = [np.sum(part.label) * np.sum(1 - part.label) for part in parts]
    scores = [roc_auc_score(part.label, part.probability) for part in parts]
    expected["auroc"] = np.average(scores, weights=pairs)
    scores = [
        f1_score(part.label, part.probability > 0.5, average="weighted")
        for part in parts
    ]
    expected["weighted_f1"] = np.average(scores, weights=[len(part) for part in parts])
    assert list(found) == [*THIRD_NAMES, *CORRELATIONS]
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
        assert found[name]["low"] < value < found[name]["high"], name


def test_a_score_that_is_area_falls_to_chance():
    table = planted(by_area=2.0, by_signal=0.0)
    assert roc_auc_score(table.label, table.probability) > 0.6
    found = found_in(table)
    # Cells of one third still differ in area: what is left of it is little.
    assert found["auroc"]["value"] == pytest.approx(0.5, abs=0.06)
    assert found["correlation"]["value"] > 0.2
    assert found["partial_correlation"]["value"] == pytest.approx(0, abs=0.03)
    assert (
        found["partial_correlation"]["low"] < 0 < found["partial_correlation"]["high"]
    )


def test_a_signal_beside_area_stays():
    table = planted(by_area=0.0, by_signal=0.8)
    whole = roc_auc_score(table.label, table.probability)
    found = found_in(table)
    assert found["auroc"]["value"] == pytest.approx(whole, abs=0.02)
    plain, partial = (found[n]["value"] for n in ("correlation", "partial_correlation"))
    assert plain > 0.5
    assert partial == pytest.approx(plain, abs=0.03)


def test_resamples_are_weightings():
    """Against doubled rows: weights of whole numbers are images told so often."""
    table = planted(by_area=0.5, by_signal=0.3, number=200)
    weight = np.random.default_rng(1).integers(0, 4, 200)
    values = np.stack([table.label, table.probability, table.area]).astype(float)
    values = (values - values.mean(1)[:, None]) / values.std(1)[:, None]
    both = np.stack([weight, np.ones(200)]).astype(float)
    found = held_fixed.correlations(values, both)
    for row, repeated in enumerate((np.repeat(values, weight, axis=1), values)):
        r = np.corrcoef(repeated)
        partial = r[0, 1] - r[0, 2] * r[1, 2]
        partial /= np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
        expected = dict(zip(CORRELATIONS, (r[0, 1], r[0, 2], partial), strict=True))
        for name in CORRELATIONS:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-12)


def test_what_only_rounding_leaves_is_undefined():
    rng = np.random.default_rng(2)
    label = rng.integers(2, size=50) - 0.5
    values = np.stack([2 * label, rng.normal(size=50), -2 * label])
    # Area tells the class; in the last weighting there is one class alone.
    weights = np.concatenate([rng.random((200, 50)), (label > 0)[None] * 0.3])
    found = held_fixed.correlations(values, weights)
    assert np.isnan(found["partial_correlation"]).all()
    assert np.isnan(found["correlation"]).tolist() == [False] * 200 + [True]
    np.testing.assert_allclose(found["correlation_with_area"][:-1], -1, atol=1e-12)


def test_an_interval_is_one_over_groups():
    """The cells of a patient share their score: more of them are no more patients."""
    widths = []
    for copies in (1, 8):
        rng = np.random.default_rng(3)
        score = rng.normal(size=40) + 0.8 * (np.arange(40) % 2)
        patient = np.repeat(np.arange(40), copies)
        table = rows(
            patient % 2,
            1 / (1 + np.exp(-score[patient])),
            patient=[f"p{i}" for i in patient.tolist()],
        )
        area = np.repeat(rng.integers(100, 9000, 40), copies)
        entry = found_in(dataclasses.replace(table, area=area), 400)[
            "partial_correlation"
        ]
        widths.append(entry["high"] - entry["low"])
    assert widths[0] == pytest.approx(widths[1], rel=0.05)
    assert widths[0] > 0.2


def test_several_passes_are_averaged():
    tables = [
        dataclasses.replace(
            planted(by_area=0.5, by_signal=s, number=300), seed=np.full(300, i)
        )
        for i, s in enumerate((0.2, 0.9))
    ]
    found = found_in(concatenate(tables), 100)
    each = [found_in(table, 100) for table in tables]
    for name, entry in found.items():
        mean = np.mean([one[name]["value"] for one in each])
        assert entry["value"] == pytest.approx(mean, abs=1e-12)


def changed(**columns: Any) -> Predictions:
    return dataclasses.replace(planted(by_area=1, by_signal=1, number=90), **columns)


@pytest.mark.parametrize(
    ("table", "reasons"),
    [
        (
            changed(area=np.full(90, 5)),
            dict.fromkeys(THIRD_NAMES, "too alike in area")
            | dict.fromkeys(CORRELATIONS[1:], "the same area"),
        ),
        (
            changed(probability=np.full(90, 0.3)),
            dict.fromkeys(("correlation", "partial_correlation"), "the same P"),
        ),
        (
            changed(label=np.ones(90, int)),
            dict.fromkeys((*THIRD_NAMES, *CORRELATIONS), "no image is HEM"),
        ),
        (
            changed(area=np.arange(90), label=(np.arange(90) % 60 < 45).astype(int)),
            {"auroc": "smallest third"},
        ),
        (
            changed(area=1 + np.arange(90) % 2, label=np.arange(90) % 2),
            dict.fromkeys(THIRD_NAMES, "too alike in area")
            | {"partial_correlation": "area alone"},
        ),
    ],
    ids=["one area", "one probability", "one class", "a third of one class", "twins"],
)
def test_what_is_undefined_says_why(table, reasons):
    table = dataclasses.replace(table, patient=table.image_id, group=table.image_id)
    for name, entry in found_in(table, 100).items():
        if name in reasons:
            assert entry["value"] is entry["low"] is entry["high"] is None, name
            assert reasons[name] in entry["reason"]
        else:
            assert entry["value"] is not None, name
